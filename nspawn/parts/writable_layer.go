package parts

import (
	"context"
	"fmt"

	"nomad-driver-nspawn/nspawn/quota"
	"nomad-driver-nspawn/nspawn/tree"
)

// makeWritable makes the machine's writable layer if it is limited; otherwise makeRoot
// does. Project quota IDs are taken from the machine's UID range, because that range is
// already unique. Therefore a range is acquired even without a user namespace.
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

func (m *Maker) removeWritable(_ context.Context, name string) error {
	if err := quota.End(m.dirs.WritableLayer(name)); err != nil {
		return err
	}
	return tree.Remove(m.dirs.WritableLayer(name))
}

func (m *Maker) writableOwners() ([]string, error) { return namesOf(m.dirs.WritableLayer("*")) }
