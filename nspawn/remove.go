package nspawn

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"nomad-driver-nspawn/nspawn/network"
	"nomad-driver-nspawn/nspawn/systemd"
)

// Remove ends the machine if it runs and removes all that belongs to its name.
// It returns nil if there is nothing.
func (m *Manager) Remove(ctx context.Context, machine string) error {
	// Where nothing can be locked, as on a full disk, no start gets far either.
	if lock, err := m.lock(machine); err == nil {
		defer lock.Close()
	}
	return m.remove(ctx, machine)
}

// RemoveDangling removes a machine if it still is what the record says and
// nobody is starting or removing it now.
func (m *Manager) RemoveDangling(ctx context.Context, record Record) error {
	lock, err := m.tryLock(record.Machine)
	if errors.Is(err, errLocked) {
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
func (m *Manager) remove(ctx context.Context, machine string) error {
	unit, err := m.unit(ctx, machine)
	switch {
	case err == nil:
		err = m.removeUnit(ctx, machine, unit)
	case errors.Is(err, ErrLost):
		err = nil
	}
	if err != nil {
		return fmt.Errorf("remove machine %s: %w", machine, err)
	}
	if err := removeGroup(unitGroup(machine)); err != nil {
		return fmt.Errorf("remove machine %s: %w", machine, err)
	}
	if err := m.removeParts(ctx, machine); err != nil {
		return fmt.Errorf("remove machine %s: %w", machine, err)
	}
	return nil
}

func (m *Manager) removeUnit(ctx context.Context, machine string, unit systemd.UnitState) error {
	if _, ok := ended(unit); !ok {
		if err := m.kill(ctx, machine); err != nil {
			return err
		}
	}
	if err := m.removeForwards(ctx, machine); err != nil {
		return err
	}
	if err := m.bus.StopUnit(ctx, UnitName(machine)); err != nil {
		return err
	}
	return m.bus.ResetFailedUnit(ctx, UnitName(machine))
}

// removeForwards removes the forwarded ports of an nspawn that was killed. One
// that ends by itself has done so, and another may have the ports already.
func (m *Manager) removeForwards(ctx context.Context, machine string) error {
	unit, err := m.unit(ctx, machine)
	if errors.Is(err, ErrLost) || err == nil && unit.ExecMainCode == cldExited {
		return nil
	}
	if err != nil {
		return err
	}
	args, err := m.bus.ExecStart(ctx, UnitName(machine))
	if err != nil && !errors.Is(err, systemd.ErrNotFound) {
		return err
	}
	return network.RemoveForwards(forwards(args))
}

// forwards are those that an nspawn with these arguments makes.
func forwards(args []string) (list []network.Forward) {
	for _, arg := range args {
		if port, ok := strings.CutPrefix(arg, "--port="); ok {
			protocol, rest, _ := strings.Cut(port, ":")
			host, _, _ := strings.Cut(rest, ":")
			if number, err := strconv.ParseUint(host, 10, 16); err == nil {
				list = append(list, network.Forward{Protocol: protocol, HostPort: uint16(number)})
			}
		}
		if arg == "--" {
			break // what follows is the payload's
		}
	}
	return list
}
