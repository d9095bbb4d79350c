package job

import (
	"nomad-driver-nspawn/driver/schema"
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

var rootSchema = schema.Options{
	"disk": schema.Block("disk", schema.Options{
		"size":      schema.RequiredAttr("size", "string"),
		"in_memory": schema.WithDefault("in_memory", "bool", false),
	}),
	"ephemeral": schema.WithDefault("ephemeral", "bool", true),
	"read_only": schema.Attr("read_only", "bool"),
	"volatile":  schema.Attr("volatile", "string"),
}

// volatiles are the values of --volatile= (systemd-nspawn(1)).
var volatiles = []string{"no", "yes", "state", "overlay"}

func (c TaskConfig) validateRoot() error {
	var found schema.Mistakes
	found.Add(schema.OneOf("volatile", c.Volatile, volatiles))
	if c.Disk == nil {
		return found.Err()
	}
	found.Add(schema.CheckDisk("disk.size", c.Disk.Size))
	found.Unless(c.Ephemeral, "disk: cannot be combined with ephemeral = false: what is written goes to the image")
	found.Unless(!c.ReadOnly, "disk: cannot be combined with read_only: nothing is written")
	if c.Volatile == "yes" || c.Volatile == "state" {
		found.Refuse("disk: cannot be combined with volatile = %q: what is written goes to file systems of its own", c.Volatile)
	}
	return found.Err()
}

func (c TaskConfig) applyRoot(in Input, spec *machine.Spec) error {
	spec.Root.InPlace, spec.Root.ReadOnly, spec.Root.Volatile = !c.Ephemeral, c.ReadOnly, c.Volatile
	var found schema.Mistakes
	if spec.Root.InPlace && !spec.Root.ReadOnly {
		found.Add(in.Policy.InPlace())
	}
	found.Add(c.applyDisk(in, spec))
	return found.Err()
}

// applyDisk limits what is written to a copy-on-write root, as the job or else the
// operator says.
func (c TaskConfig) applyDisk(in Input, spec *machine.Spec) error {
	if !c.Ephemeral || c.ReadOnly || c.Volatile == "yes" || c.Volatile == "state" {
		return nil // nothing is written there
	}
	var asked uint64
	if c.Disk != nil {
		asked, spec.Root.WritableLayer.InMemory = schema.Bytes(c.Disk.Size), c.Disk.InMemory
	}
	var err error
	spec.Root.WritableLayer.Max, err = in.Policy.Disk(asked)
	return err
}
