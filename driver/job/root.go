package job

import (
	"github.com/dustin/go-humanize"

	"nomad-driver-nspawn/nspawn/machine"
)

type rootOptions struct {
	Disk      *Disk  `codec:"disk"`
	Ephemeral bool   `codec:"ephemeral"`
	ReadOnly  bool   `codec:"read_only"`
	Volatile  string `codec:"volatile"`
}

// Disk limits what a task writes to its root file system.
type Disk struct {
	Size     string `codec:"size"`
	InMemory bool   `codec:"in_memory"`
}

var rootSchema = options{
	"disk": block("disk", options{
		"size":      requiredAttr("size", "string"),
		"in_memory": withDefault("in_memory", "bool", false),
	}),
	"ephemeral": withDefault("ephemeral", "bool", true),
	"read_only": attr("read_only", "bool"),
	"volatile":  attr("volatile", "string"),
}

// volatiles are the values of --volatile= (systemd-nspawn(1)).
var volatiles = []string{"no", "yes", "state", "overlay"}

// minDisk leaves room for what the driver itself writes before the start.
const minDisk = mebibyte

func (c TaskConfig) validateRoot() error {
	var found mistakes
	found.add(oneOf("volatile", c.Volatile, volatiles))
	if c.Disk == nil {
		return found.err()
	}
	if limit, err := humanize.ParseBytes(c.Disk.Size); err != nil {
		found.add(size("disk.size", c.Disk.Size, "2GB"))
	} else if limit < minDisk {
		found.refuse("disk.size: %q is less than 1MiB", c.Disk.Size)
	}
	found.unless(c.Ephemeral, "disk: cannot be combined with ephemeral = false: what is written goes to the image")
	found.unless(!c.ReadOnly, "disk: cannot be combined with read_only: nothing is written")
	if c.Volatile == "yes" || c.Volatile == "state" {
		found.refuse("disk: cannot be combined with volatile = %q: what is written goes to file systems of its own", c.Volatile)
	}
	return found.err()
}

func (c TaskConfig) applyRoot(in Input, spec *machine.Spec) error {
	spec.Root.InPlace, spec.Root.ReadOnly, spec.Root.Volatile = !c.Ephemeral, c.ReadOnly, c.Volatile
	if c.Disk != nil {
		spec.Root.Writable = machine.Writable{Max: bytesOf(c.Disk.Size), InMemory: c.Disk.InMemory}
	}
	if spec.Root.InPlace && !spec.Root.ReadOnly {
		return in.Policy.InPlace()
	}
	return nil
}
