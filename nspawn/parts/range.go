package parts

import (
	"context"

	"nomad-driver-nspawn/nspawn/idmap"
)

// makeRange acquires the machine's UID range. A machine with a limited writable layer has
// one even without a user namespace, see makeWritable.
func (m *Maker) makeRange(_ context.Context, d *draft) (err error) {
	if !d.spec.Root.UserNamespace {
		return nil
	}
	if d.base, err = m.ranges.Acquire(d.spec.Machine); err != nil {
		return err
	}
	d.users, err = idmap.Namespace(d.base)
	return err
}

func (m *Maker) removeRange(_ context.Context, name string) error {
	return m.ranges.Release(name)
}
