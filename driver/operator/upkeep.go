package operator

import (
	"time"

	"nomad-driver-nspawn/driver/schema"
	"nomad-driver-nspawn/nspawn/image/store"
)

type upkeepOptions struct {
	DanglingMachines DanglingMachines `codec:"dangling_machines"`
	ImageGC          ImageGC          `codec:"image_gc"`
}

// DanglingMachines configures the reaper, which removes machines whose tasks Nomad
// no longer knows. It is like docker's dangling_containers.
type DanglingMachines struct {
	Enabled       bool   `codec:"enabled"`
	Period        string `codec:"period"`
	CreationGrace string `codec:"creation_grace"`
	DryRun        bool   `codec:"dry_run"`
}

// ImageGC says when images of the store that no task uses are removed.
type ImageGC struct {
	Enabled   bool   `codec:"enabled"`
	UnusedFor string `codec:"unused_for"`
	MaxSize   string `codec:"max_size"`
}

func defaultUpkeep() upkeepOptions {
	return upkeepOptions{
		DanglingMachines: DanglingMachines{Enabled: true, Period: "5m", CreationGrace: "5m"},
		ImageGC:          ImageGC{Enabled: true, UnusedFor: "24h"},
	}
}

var upkeepSchema = schema.Options{
	"dangling_machines": schema.PresentBlock("dangling_machines", schema.Options{
		"enabled":        schema.WithDefault("enabled", "bool", defaults.DanglingMachines.Enabled),
		"period":         schema.WithDefault("period", "string", defaults.DanglingMachines.Period),
		"creation_grace": schema.WithDefault("creation_grace", "string", defaults.DanglingMachines.CreationGrace),
		"dry_run":        schema.WithDefault("dry_run", "bool", defaults.DanglingMachines.DryRun),
	}),
	"image_gc": schema.PresentBlock("image_gc", schema.Options{
		"enabled":    schema.WithDefault("enabled", "bool", defaults.ImageGC.Enabled),
		"unused_for": schema.WithDefault("unused_for", "string", defaults.ImageGC.UnusedFor),
		"max_size":   schema.Attr("max_size", "string"),
	}),
}

func (c Config) validateUpkeep() error {
	var found schema.Mistakes
	if d := c.DanglingMachines; d.Enabled {
		found.Add(schema.CheckDuration("dangling_machines.period", d.Period), schema.CheckDuration("dangling_machines.creation_grace", d.CreationGrace))
	}
	if gc := c.ImageGC; gc.Enabled {
		found.Add(schema.CheckDuration("image_gc.unused_for", gc.UnusedFor))
		if gc.MaxSize != "" {
			found.Add(schema.CheckSize("image_gc.max_size", gc.MaxSize, "20GB"))
		}
	}
	return found.Err()
}

// Times returns how often the reaper looks for dangling machines, and how long after its
// start a machine is left alone.
func (d DanglingMachines) Times() (period, grace time.Duration) {
	return schema.Duration(d.Period), schema.Duration(d.CreationGrace)
}

// Options returns which images the store removes.
func (c ImageGC) Options() store.CollectOptions {
	return store.CollectOptions{UnusedFor: schema.Duration(c.UnusedFor), MaxBytes: int64(schema.Bytes(c.MaxSize))}
}
