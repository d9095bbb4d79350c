package nspawn

import (
	"context"
	"errors"
	"fmt"
	"os"

	"nomad-driver-nspawn/nspawn/cgroup"
	"nomad-driver-nspawn/nspawn/filelock"
	"nomad-driver-nspawn/nspawn/machine"
	"nomad-driver-nspawn/nspawn/systemd"
)

// Remove ends the machine if it runs and removes all that belongs to its name.
// It returns nil if there is nothing.
func (m *Manager) Remove(ctx context.Context, name string) error {
	// Where nothing can be locked, as on a full disk, no start gets far either.
	if lock, err := m.locks.Lock(name); err == nil {
		defer lock.Close()
	}
	return m.remove(ctx, name)
}

// RemoveDangling removes a machine if it still is what the record says and
// nobody is starting or removing it now.
func (m *Manager) RemoveDangling(ctx context.Context, record Record) error {
	lock, err := m.locks.TryLock(record.Machine)
	if errors.Is(err, filelock.ErrLocked) {
		return nil
	}
	if err != nil {
		return err
	}
	defer lock.Close()
	now, err := m.Record(ctx, record.Machine)
	if err != nil && !errors.Is(err, ErrLost) {
		return err
	}
	if now.Invocation != record.Invocation {
		return nil
	}
	return m.remove(ctx, record.Machine)
}

// remove is Remove for the holder of the machine's lock.
func (m *Manager) remove(ctx context.Context, name string) error {
	unit, err := m.unit(ctx, name)
	switch {
	case err == nil:
		err = m.removeUnit(ctx, name, unit)
	case errors.Is(err, ErrLost):
		err = nil
	}
	if err != nil {
		return fmt.Errorf("remove machine %s: %w", name, err)
	}
	if err := cgroup.Remove(cgroup.OfUnit(name)); err != nil {
		return fmt.Errorf("remove machine %s: %w", name, err)
	}
	if err := m.parts.Remove(ctx, name); err != nil {
		return fmt.Errorf("remove machine %s: %w", name, err)
	}
	return nil
}

// clear removes what an earlier start left. The machine's directory is the first thing of
// it that is made, and the last that is removed: where there is none, there is no unit,
// and systemd need not be asked.
func (m *Manager) clear(ctx context.Context, name string) error {
	if !m.Exists(name) {
		return m.parts.Remove(ctx, name)
	}
	return m.remove(ctx, name)
}

// Exists reports whether a machine is there, or a start or a removal of it was interrupted.
func (m *Manager) Exists(name string) bool {
	_, err := os.Lstat(m.dirs.Machine(name))
	return !errors.Is(err, os.ErrNotExist)
}

func (m *Manager) removeUnit(ctx context.Context, name string, unit systemd.UnitState) error {
	if _, ok := ended(unit); !ok {
		if err := m.kill(ctx, name); err != nil {
			return err
		}
	}
	if err := m.bus.StopUnit(ctx, machine.UnitName(name)); err != nil {
		return err
	}
	return m.bus.ResetFailedUnit(ctx, machine.UnitName(name))
}
