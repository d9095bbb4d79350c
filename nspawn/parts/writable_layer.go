package parts

import (
	"context"
	"fmt"

	"nomad-driver-nspawn/nspawn/quota"
	"nomad-driver-nspawn/nspawn/tree"
)

// makeWritable makes the machine's writable layer, if it is limited; else the root does.
// The projects that it may be of are numbered as the UIDs of its range, which is no
// other machine's; so it has one also if it has no user namespace.
func (m *Maker) makeWritable(_ context.Context, d *draft) error {
	writable := d.spec.Root.WritableLayer
	if writable.Max == 0 || writable.InMemory {
		return nil
	}
	projects, err := m.ranges.Acquire(d.spec.Machine)
	if err != nil {
		return err
	}
	if err := quota.Make(m.dirs.WritableLayer(d.spec.Machine), writable.Max, projects); err != nil {
		return fmt.Errorf("%w; or set in_memory in the disk block", err)
	}
	return nil
}

func (m *Maker) removeWritable(_ context.Context, machine string) error {
	if err := quota.End(m.dirs.WritableLayer(machine)); err != nil {
		return err
	}
	return tree.Remove(m.dirs.WritableLayer(machine))
}

func (m *Maker) writableOwners() ([]string, error) { return namesOf(m.dirs.WritableLayer("*")) }
