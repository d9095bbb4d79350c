package oci

import (
	"encoding/json"
	"fmt"
	"path"
	"slices"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// configFile is the part of an image's config that is used (OCI image spec,
// config.md). The rest may be malformed.
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

// check looks whether the config belongs to an image of so many layers for a
// platform. One chosen from an index by its platform may say another, as some
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
		// A volume at the root would be the root itself.
		if path := inRoot(volume); path != "/" {
			config.Volumes = append(config.Volumes, path)
		}
	}
	slices.Sort(config.Volumes)
	config.Volumes = slices.Compact(config.Volumes)
	return config
}

// inRoot returns a path of the image as an absolute one. A relative path is relative to
// the root, as for docker, and none leads out of it.
func inRoot(name string) string { return path.Join("/", name) }

// Command returns the whole command of a task, by docker's rules. entrypoint is nil if
// the job does not set one. One that it sets, even an empty one, replaces the image's and
// drops the image's Cmd, which belongs to the image's entrypoint. A command of the job
// replaces Cmd.
func (c Config) Command(entrypoint, command []string) []string {
	if entrypoint == nil {
		entrypoint = c.Entrypoint
		if len(command) == 0 {
			command = c.Cmd
		}
	}
	return slices.Concat(entrypoint, command)
}
