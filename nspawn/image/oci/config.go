package oci

import (
	"encoding/json"
	"fmt"
	"maps"
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
	return Config{
		Entrypoint: c.Config.Entrypoint,
		Cmd:        c.Config.Cmd,
		Env:        c.Config.Env,
		User:       c.Config.User,
		WorkingDir: c.Config.WorkingDir,
		StopSignal: c.Config.StopSignal,
		Volumes:    slices.Sorted(maps.Keys(c.Config.Volumes)),
	}
}
