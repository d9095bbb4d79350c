package nspawn

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"nomad-driver-nspawn/nspawn/disk"
	"nomad-driver-nspawn/nspawn/enter"
	"nomad-driver-nspawn/nspawn/idmap"
	"nomad-driver-nspawn/nspawn/image/store"
	"nomad-driver-nspawn/nspawn/systemd"
)

// Manager starts and controls machines by name. It remembers none: what there
// is, systemd knows. It is safe for concurrent use.
type Manager struct {
	bus    *systemd.Conn
	dirs   Dirs
	ranges idmap.Ranges
	images store.Store
	disks  disk.Mounts
}

// NewManager uses the systemd behind bus.
func NewManager(bus *systemd.Conn, dirs Dirs) *Manager {
	return &Manager{bus: bus, dirs: dirs, ranges: idmap.Ranges{Dir: dirs.ranges()}, images: store.Store{Dir: dirs.Images()}, disks: disk.Mounts{Dir: dirs.disks()}}
}

// killTimeout bounds the wait for a machine that was killed. The kernel's work
// is done in milliseconds; nspawn and systemd then tidy up.
const killTimeout = 10 * time.Second

// Status is what systemd says about a machine now. Exit is nil while it runs.
// A machine without a unit is ErrLost.
type Status struct {
	Started, Ended time.Time
	Exit           *Exit
}

// Status looks the machine up. It waits for a bus that is away until ctx ends.
func (m *Manager) Status(ctx context.Context, machine string) (Status, error) {
	unit, err := m.awaitUnit(ctx, machine)
	if err != nil {
		return Status{}, err
	}
	status := Status{Started: unit.ExecMainStart}
	if exit, ok := ended(unit); ok {
		status.Exit, status.Ended = &exit, unit.ExecMainExit
	}
	return status, nil
}

// Wait returns how the machine ended, when it has.
func (m *Manager) Wait(ctx context.Context, machine string) (Exit, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	for unit := range m.bus.WatchUnit(ctx, UnitName(machine)) {
		if gone(unit) {
			return Exit{}, fmt.Errorf("wait for machine %s: %w", machine, ErrLost)
		}
		if exit, ok := ended(unit); ok {
			return exit, nil
		}
	}
	return Exit{}, fmt.Errorf("wait for machine %s: %w", machine, ctx.Err())
}

// Signal sends a signal to the machine's payload, never to systemd-nspawn,
// which most signals would kill.
func (m *Manager) Signal(ctx context.Context, machine string, mode Mode, sig unix.Signal) error {
	payload, err := m.payload(ctx, machine, mode)
	if err != nil {
		return err
	}
	return payload.signal(sig)
}

// Stop ends the machine: sig to the payload, and when the timeout is over,
// SIGKILL to all of it. The unit stays, with the exit status. It returns nil
// if the machine has ended already or is gone.
func (m *Manager) Stop(ctx context.Context, machine string, mode Mode, sig unix.Signal, timeout time.Duration) error {
	err := m.signalToStop(ctx, machine, mode, sig)
	switch {
	case errors.Is(err, ErrLost):
		return nil
	case errors.Is(err, os.ErrProcessDone):
		// It is ending by itself, or was to begin only now.
		timeout = min(timeout, time.Second)
	case errors.Is(err, errDeaf):
		timeout = 0
	}
	if m.waitFor(ctx, machine, timeout) == nil {
		return nil
	}
	return m.kill(ctx, machine)
}

// signalToStop sends the signal unless that is in vain: an init that boots has
// neither blocked nor caught it yet, and the kernel drops it (pid_namespaces(7)).
// Such a guest has not begun to do anything.
func (m *Manager) signalToStop(ctx context.Context, machine string, mode Mode, sig unix.Signal) error {
	unit, err := m.awaitUnit(ctx, machine)
	if err != nil {
		return err
	}
	payload, err := payloadOf(unit, mode)
	if err != nil {
		return err
	}
	if mode == Boot && !payload.takes(sig) {
		return errDeaf
	}
	return payload.signal(sig)
}

// errDeaf says that a signal would be lost on the payload.
var errDeaf = errors.New("the machine's init does not take the signal yet")

// kill ends the machine at once. The end of the leader ends all processes of
// its PID namespace and leaves nspawn alive to tidy up; the whole unit is
// killed only when that does not help.
func (m *Manager) kill(ctx context.Context, machine string) error {
	if leader, err := m.leader(ctx, machine); err == nil {
		if leader.signal(unix.SIGKILL) == nil && m.waitFor(ctx, machine, killTimeout) == nil {
			return nil
		}
	}
	if unit, err := m.unit(ctx, machine); err == nil && unit.SubState == "auto-restart" {
		return m.bus.StopUnit(ctx, UnitName(machine)) // rebooting: there is no process to kill
	}
	if err := m.bus.KillUnit(ctx, UnitName(machine), "all", int(unix.SIGKILL)); err != nil && !errors.Is(err, systemd.ErrNotFound) {
		return fmt.Errorf("kill machine %s: %w", machine, err)
	}
	return m.waitFor(ctx, machine, killTimeout)
}

// waitFor waits until the machine has ended or is gone.
func (m *Manager) waitFor(ctx context.Context, machine string, timeout time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	if _, err := m.Wait(ctx, machine); err != nil && !errors.Is(err, ErrLost) {
		return err
	}
	return nil
}

// Exec runs a command in the machine, as confined as its payload.
func (m *Manager) Exec(ctx context.Context, machine string, command enter.Command) (int, error) {
	for moves := 0; ; moves++ {
		leader, err := m.leader(ctx, machine)
		if err != nil {
			return 0, err
		}
		cgroup, err := leader.cgroup()
		if err != nil {
			return 0, err
		}
		target := enter.Target{Leader: leader.pid, Cgroup: cgroup, Delegated: payloadGroup(machine)}
		code, err := enter.Run(ctx, target, command)
		// Nothing was run if the leader has moved.
		if moved, _ := leader.cgroup(); !errors.Is(err, enter.ErrMoved) || moved == cgroup || moves == maxMoves {
			return code, err
		}
	}
}

// maxMoves is how often a leader may go to another cgroup while it is entered. A
// booting systemd does so once, an evil init all the time.
const maxMoves = 3

// payload is the process of the machine that the job asked for.
func (m *Manager) payload(ctx context.Context, machine string, mode Mode) (process, error) {
	leader, err := m.leader(ctx, machine)
	if err != nil {
		return process{}, err
	}
	return findPayload(leader.pid, mode)
}

func payloadOf(unit systemd.UnitState, mode Mode) (process, error) {
	leader, err := leaderOf(int(unit.MainPID))
	if err != nil {
		return process{}, err
	}
	return findPayload(leader.pid, mode)
}

func (m *Manager) leader(ctx context.Context, machine string) (process, error) {
	nspawn, err := m.bus.MainPID(ctx, UnitName(machine))
	if errors.Is(err, systemd.ErrNotFound) {
		return process{}, fmt.Errorf("machine %s: %w", machine, ErrLost)
	}
	if err != nil {
		return process{}, err
	}
	return leaderOf(nspawn)
}

func leaderOf(nspawn int) (process, error) {
	if nspawn == 0 {
		return process{}, fmt.Errorf("the machine does not run: %w", os.ErrProcessDone)
	}
	return leader(nspawn)
}

// awaitUnit is unit, but waits for a bus that is away until ctx ends.
func (m *Manager) awaitUnit(ctx context.Context, machine string) (systemd.UnitState, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	unit, ok := <-m.bus.WatchUnit(ctx, UnitName(machine))
	switch {
	case !ok:
		return unit, fmt.Errorf("look up machine %s: systemd does not answer: %w", machine, ctx.Err())
	case gone(unit):
		return unit, fmt.Errorf("machine %s: %w", machine, ErrLost)
	}
	return unit, nil
}

func (m *Manager) unit(ctx context.Context, machine string) (systemd.UnitState, error) {
	unit, err := m.bus.Unit(ctx, UnitName(machine))
	if errors.Is(err, systemd.ErrNotFound) {
		return systemd.UnitState{}, fmt.Errorf("machine %s: %w", machine, ErrLost)
	}
	return unit, err
}
