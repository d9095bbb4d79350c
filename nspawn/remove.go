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

// Remove ends the machine if it runs, and removes everything that has its name. It returns
// nil if nothing exists.
func (m *Manager) Remove(ctx context.Context, name string) error {
	// If nothing can be locked, for example on a full disk, no start gets far either.
	if lock, err := m.locks.Lock(name); err == nil {
		defer lock.Close()
	}
	return m.remove(ctx, name)
}

// RemoveDangling removes a machine if the record still describes it and nobody is starting
// or removing it.
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

// remove is like Remove, for a caller that holds the machine's lock.
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

// clear removes what an earlier start left. The machine's directory is created first and
// removed last. So if there is none, there is no unit, and systemd need not be asked.
func (m *Manager) clear(ctx context.Context, name string) error {
	if !m.Exists(name) {
		return m.parts.Remove(ctx, name)
	}
	return m.remove(ctx, name)
}

// Exists reports whether there is a machine of the name, or whether its start or removal
// was interrupted.
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
