package job

import (
	"fmt"

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
	found.add(checkDisk("disk.size", c.Disk.Size))
	found.unless(c.Ephemeral, "disk: cannot be combined with ephemeral = false: what is written goes to the image")
	found.unless(!c.ReadOnly, "disk: cannot be combined with read_only: nothing is written")
	if c.Volatile == "yes" || c.Volatile == "state" {
		found.refuse("disk: cannot be combined with volatile = %q: what is written goes to file systems of its own", c.Volatile)
	}
	return found.err()
}

func (c TaskConfig) applyRoot(in Input, spec *machine.Spec) error {
	spec.Root.InPlace, spec.Root.ReadOnly, spec.Root.Volatile = !c.Ephemeral, c.ReadOnly, c.Volatile
	var found mistakes
	if spec.Root.InPlace && !spec.Root.ReadOnly {
		found.add(in.Policy.InPlace())
	}
	found.add(c.applyDisk(in, spec))
	return found.err()
}

// applyDisk limits what is written to a copy-on-write root, as the job or else the
// operator says.
func (c TaskConfig) applyDisk(in Input, spec *machine.Spec) error {
	if !c.Ephemeral || c.ReadOnly || c.Volatile == "yes" || c.Volatile == "state" {
		return nil // nothing is written there
	}
	var asked uint64
	if c.Disk != nil {
		asked, spec.Root.Writable.InMemory = bytesOf(c.Disk.Size), c.Disk.InMemory
	}
	var err error
	spec.Root.Writable.Max, err = in.Policy.Disk(asked)
	return err
}

func checkDisk(at, value string) error {
	limit, err := humanize.ParseBytes(value)
	switch {
	case err != nil:
		return size(at, value, "2GB")
	case limit < minDisk:
		return fmt.Errorf("%s: %q is less than 1MiB", at, value)
	}
	return nil
}
