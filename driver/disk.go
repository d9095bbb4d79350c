package driver

import (
	"errors"
	"fmt"

	"github.com/dustin/go-humanize"
	"github.com/hashicorp/nomad/plugins/shared/hclspec"

	"nomad-driver-nspawn/nspawn"
)

// Disk limits what a task writes to its root file system.
type Disk struct {
	Size     string `codec:"size"`
	InMemory bool   `codec:"in_memory"`
}

var diskSpec = hclspec.NewBlock("disk", false, hclspec.NewObject(map[string]*hclspec.Spec{
	"size":      hclspec.NewAttr("size", "string", true),
	"in_memory": withDefault("in_memory", "bool", "false"),
}))

// minDisk leaves room for what the driver itself writes before the start.
const minDisk = mebibyte

func (c TaskConfig) validateDisk() error {
	if c.Disk == nil {
		return nil
	}
	var errs []error
	switch size, err := humanize.ParseBytes(c.Disk.Size); {
	case err != nil:
		errs = append(errs, fmt.Errorf("disk.size: %q is not a size, as 2GB", c.Disk.Size))
	case size < minDisk:
		errs = append(errs, fmt.Errorf("disk.size: %q is less than 1MiB", c.Disk.Size))
	}
	if !c.Ephemeral {
		errs = append(errs, errors.New("disk: cannot be combined with ephemeral = false: what is written goes to the image"))
	}
	if c.ReadOnly {
		errs = append(errs, errors.New("disk: cannot be combined with read_only: nothing is written"))
	}
	if c.Volatile == "yes" || c.Volatile == "state" {
		errs = append(errs, fmt.Errorf("disk: cannot be combined with volatile = %q: what is written goes to file systems of its own", c.Volatile))
	}
	return errors.Join(errs...)
}

func (c TaskConfig) writable() nspawn.Writable {
	if c.Disk == nil {
		return nspawn.Writable{}
	}
	size, _ := humanize.ParseBytes(c.Disk.Size) // validated
	return nspawn.Writable{Max: size, InMemory: c.Disk.InMemory}
}
