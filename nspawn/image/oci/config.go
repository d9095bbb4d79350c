package oci

import (
	"encoding/json"
	"fmt"
	"path"
	"slices"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// configFile holds the fields of an image's config that are used (OCI image spec,
// config.md). The others may be malformed.
type configFile struct {
	Architecture string    `json:"architecture"`
	OS           string    `json:"os"`
	Variant      string    `json:"variant"`
	RootFS       v1.RootFS `json:"rootfs"`
	Config       struct {
		Entrypoint []string
		Cmd        []string
		Env        []string
		User       string
		WorkingDir string
		StopSignal string
		Volumes    map[string]struct{}
	} `json:"config"`
}

func parseConfig(raw []byte) (configFile, error) {
	var c configFile
	if err := json.Unmarshal(raw, &c); err != nil {
		return configFile{}, fmt.Errorf("parse config: %w", err)
	}
	return c, nil
}

// check checks that the config fits the number of layers and the platform. If the image
// was chosen from an index by its platform, the config may name another one: some images
// that were built across architectures do.
func (c configFile) check(on v1.Platform, chosen bool, layers int) error {
	if n := len(c.RootFS.DiffIDs); n != layers {
		return fmt.Errorf("config has %d diff IDs for %d layers", n, layers)
	}
	of := v1.Platform{OS: c.OS, Architecture: c.Architecture, Variant: c.Variant}
	if !chosen && c.Architecture != "" && !runs(on, of) {
		return noPlatform(on, []string{of.String()})
	}
	return nil
}

func (c configFile) image() Config {
	config := Config{
		Entrypoint: c.Config.Entrypoint,
		Cmd:        c.Config.Cmd,
		Env:        c.Config.Env,
		User:       c.Config.User,
		StopSignal: c.Config.StopSignal,
	}
	if c.Config.WorkingDir != "" {
		config.WorkingDir = inRoot(c.Config.WorkingDir)
	}
	for volume := range c.Config.Volumes {
		// A volume at the root would replace the root itself.
		if path := inRoot(volume); path != "/" {
			config.Volumes = append(config.Volumes, path)
		}
	}
	slices.Sort(config.Volumes)
	config.Volumes = slices.Compact(config.Volumes)
	return config
}

// inRoot returns a path of the image as an absolute path. As in docker, a relative path
// is relative to the root, and no path leads out of it.
func inRoot(name string) string { return path.Join("/", name) }

// Command returns the whole command of a task according to docker's rules. entrypoint is
// nil if the job does not set one. If the job sets it, even to an empty list, it replaces
// the image's entrypoint, and the image's Cmd is dropped, because Cmd belongs to that
// entrypoint. A command of the job replaces Cmd.
func (c Config) Command(entrypoint, command []string) []string {
	if entrypoint == nil {
		entrypoint = c.Entrypoint
		if len(command) == 0 {
			command = c.Cmd
		}
	}
	return slices.Concat(entrypoint, command)
}
