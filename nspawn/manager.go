package nspawn

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"nomad-driver-nspawn/nspawn/cgroup"
	"nomad-driver-nspawn/nspawn/dirs"
	"nomad-driver-nspawn/nspawn/enter"
	"nomad-driver-nspawn/nspawn/filelock"
	"nomad-driver-nspawn/nspawn/guard"
	"nomad-driver-nspawn/nspawn/machine"
	"nomad-driver-nspawn/nspawn/network"
	"nomad-driver-nspawn/nspawn/parts"
	"nomad-driver-nspawn/nspawn/process"
	"nomad-driver-nspawn/nspawn/systemd"
)

// Manager starts and controls machines by name. It keeps no list of them, because systemd
// does. It is safe for concurrent use.
type Manager struct {
	bus   *systemd.Conn
	dirs  dirs.Dirs
	locks filelock.Names
	parts *parts.Maker

	networks *network.Host // nil without networks
}

// NewManager returns a manager that uses the systemd behind bus. If networks is nil,
// machines can only have given network namespaces.
func NewManager(bus *systemd.Conn, dirs dirs.Dirs, networks *network.Host) *Manager {
	locks := filelock.Names{File: dirs.Lock()}
	return &Manager{bus: bus, dirs: dirs, locks: locks, parts: parts.New(dirs, locks, networks), networks: networks}
}

// Status is the state of a machine. Exit is nil while it runs.
type Status struct {
	Started, Ended time.Time
	Exit           *Exit
}

// Status looks up the machine. If the bus is away, it waits until ctx ends. The error is
// ErrLost if the machine has no unit.
func (m *Manager) Status(ctx context.Context, name string) (Status, error) {
	unit, err := m.awaitUnit(ctx, name)
	if err != nil {
		return Status{}, err
	}
	status := Status{Started: unit.ExecMainStart}
	if exit, ok := ended(unit); ok {
		status.Exit, status.Ended = &exit, unit.ExecMainExit
	}
	return status, nil
}

// Wait waits for the end of the machine and returns how it ended.
func (m *Manager) Wait(ctx context.Context, name string) (Exit, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	for unit := range m.bus.WatchUnit(ctx, machine.UnitName(name)) {
		if gone(unit) {
			return Exit{}, fmt.Errorf("wait for machine %s: %w", name, ErrLost)
		}
		if exit, ok := ended(unit); ok {
			return exit, nil
		}
	}
	return Exit{}, fmt.Errorf("wait for machine %s: %w", name, ctx.Err())
}

// Signal sends a signal to the machine's payload. It never signals systemd-nspawn, which
// most signals would kill.
func (m *Manager) Signal(ctx context.Context, name string, mode machine.Mode, sig unix.Signal) error {
	payload, err := m.payload(ctx, name, mode)
	if err != nil {
		return err
	}
	return payload.Signal(sig)
}

// Exec runs a command in the machine, as confined as its payload.
func (m *Manager) Exec(ctx context.Context, name string, command enter.Command) (int, error) {
	for moves := 0; ; moves++ {
		leader, err := m.leader(ctx, name)
		if err != nil {
			return 0, err
		}
		group, err := cgroup.Of(leader.PID)
		if err != nil {
			return 0, err
		}
		target := enter.Target{Leader: leader.PID, Cgroup: group, Delegated: cgroup.OfPayload(name)}
		code, err := enter.Run(ctx, target, command)
		// If the leader has moved, nothing was run.
		if moved, _ := cgroup.Of(leader.PID); !errors.Is(err, enter.ErrMoved) || moved == group || moves == maxMoves {
			return code, err
		}
	}
}

// LimitShare limits the machines without cores of their own to some cores, those that
// already run and those to come.
func (m *Manager) LimitShare(ctx context.Context, cpus []int) error {
	return m.bus.SetUnitProperties(ctx, machine.ShareSlice, true, machine.ShareProperties(cpus)...)
}

// Usage returns what the machine uses.
func (m *Manager) Usage(name string) (cgroup.Usage, error) { return cgroup.ReadUsage(name) }

// maxMoves limits how often a leader may move to another cgroup while it is entered. A
// booting systemd moves once, a malicious init all the time.
const maxMoves = 3

// payload returns the process that the job asked for.
func (m *Manager) payload(ctx context.Context, name string, mode machine.Mode) (process.Process, error) {
	leader, err := m.leader(ctx, name)
	if err != nil {
		return process.Process{}, err
	}
	return process.FindPayload(leader.PID, mode)
}

func payloadOf(unit systemd.UnitState, mode machine.Mode) (process.Process, error) {
	leader, err := process.Leader(int(unit.MainPID))
	if err != nil {
		return process.Process{}, err
	}
	return process.FindPayload(leader.PID, mode)
}

func (m *Manager) leader(ctx context.Context, name string) (process.Process, error) {
	nspawn, err := m.bus.MainPID(ctx, machine.UnitName(name))
	if errors.Is(err, systemd.ErrNotFound) {
		return process.Process{}, fmt.Errorf("machine %s: %w", name, ErrLost)
	}
	if err != nil {
		return process.Process{}, err
	}
	return process.Leader(nspawn)
}

// awaitUnit is like unit, but waits until ctx ends if the bus is away.
func (m *Manager) awaitUnit(ctx context.Context, name string) (systemd.UnitState, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	unit, ok := <-m.bus.WatchUnit(ctx, machine.UnitName(name))
	switch {
	case !ok:
		return unit, fmt.Errorf("look up machine %s: systemd does not answer: %w", name, ctx.Err())
	case gone(unit):
		return unit, fmt.Errorf("machine %s: %w", name, ErrLost)
	}
	return unit, nil
}

func (m *Manager) unit(ctx context.Context, name string) (systemd.UnitState, error) {
	unit, err := m.bus.Unit(ctx, machine.UnitName(name))
	if errors.Is(err, systemd.ErrNotFound) {
		return systemd.UnitState{}, fmt.Errorf("machine %s: %w", name, ErrLost)
	}
	return unit, err
}

// ForbidLinks keeps the host from following links in a directory, see package guard.
func (m *Manager) ForbidLinks(dir string) error {
	return guard.ForbidLinks(m.dirs.NoSymfollowAllocs(), dir)
}

// RemoveEmptied removes the directories of ForbidLinks that are empty.
func (m *Manager) RemoveEmptied() error { return guard.RemoveEmptied(m.dirs.NoSymfollowAllocs()) }
