package nspawn

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"nomad-driver-nspawn/nspawn/machine"
	"nomad-driver-nspawn/nspawn/process"
	"nomad-driver-nspawn/nspawn/systemd"
)

// killTimeout limits the wait for a machine that was killed. The kernel needs
// milliseconds; then nspawn and systemd clean up.
const killTimeout = 10 * time.Second

// endTimeout bounds the wait for a unit that was killed as a whole. Nothing is left to do
// then but to wait: a host with a load of 40 was seen to take 10 s.
const endTimeout = time.Minute

// Stop ends the machine: sig to the payload, and when the timeout is over,
// SIGKILL to all of it. The unit stays, with the exit status. It returns nil
// if the machine has ended already or is gone. It tells by notice of an init that it
// does not know how to stop.
func (m *Manager) Stop(ctx context.Context, name string, mode machine.Mode, sig unix.Signal, timeout time.Duration, notice func(string)) error {
	asked, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	begin := time.Now()
	err := m.signalToStop(asked, name, mode, sig)
	var unknown *unknownInitError
	switch {
	case errors.Is(err, ErrLost):
		return nil
	case errors.Is(err, os.ErrProcessDone):
		// The machine is ending by itself, or has not begun yet.
		timeout = min(timeout, time.Second)
	case errors.Is(err, errSignalBlocked):
		timeout = 0
	case errors.As(err, &unknown):
		notice(unknown.Error())
	}
	if m.waitFor(ctx, name, timeout-time.Since(begin)) == nil {
		return nil
	}
	return m.kill(ctx, name)
}

// signalToStop sends the signal, unless it would have no effect.
func (m *Manager) signalToStop(ctx context.Context, name string, mode machine.Mode, sig unix.Signal) error {
	unit, err := m.awaitUnit(ctx, name)
	if err != nil {
		return err
	}
	payload, err := payloadOf(unit, mode)
	if err != nil {
		return err
	}
	if mode == machine.Boot {
		return m.signalInit(ctx, name, payload, sig)
	}
	return payload.Signal(sig)
}

// kill ends the machine at once. The end of the leader ends all processes of its PID
// namespace and leaves nspawn alive to tidy up; the whole unit is killed only when that
// does not help.
func (m *Manager) kill(ctx context.Context, name string) error {
	for end := time.Now().Add(killTimeout); time.Now().Before(end) && m.killLeader(ctx, name); {
		if m.waitFor(ctx, name, killLeaderAgain) == nil {
			return nil
		}
	}
	if unit, err := m.unit(ctx, name); err == nil && unit.SubState == "auto-restart" {
		return m.bus.StopUnit(ctx, machine.UnitName(name)) // the guest is rebooting, so there is no process to kill
	}
	if err := m.bus.KillUnit(ctx, machine.UnitName(name), "all", int(unix.SIGKILL)); err != nil && !errors.Is(err, systemd.ErrNotFound) {
		return fmt.Errorf("kill machine %s: %w", name, err)
	}
	return m.waitFor(ctx, name, endTimeout)
}

// killLeaderAgain is the time after which a leader is looked for again: a guest that reboots
// has another one.
const killLeaderAgain = time.Second

// killLeader kills the machine's leader, and reports whether nspawn is about to end with it.
// It is, too, if the leader of a payload that had begun has ended already: an nspawn that is
// killed while it tidies up does not tell the exit status any more.
func (m *Manager) killLeader(ctx context.Context, name string) bool {
	nspawn, err := m.bus.MainPID(ctx, machine.UnitName(name))
	if err != nil || nspawn == 0 {
		return false
	}
	leader, err := process.Leader(nspawn)
	if err == nil {
		err = leader.Signal(unix.SIGKILL)
	}
	if errors.Is(err, os.ErrProcessDone) {
		_, err = os.Stat(m.dirs.Begun(name))
	}
	return err == nil
}

// waitFor waits until the machine has ended or is gone.
func (m *Manager) waitFor(ctx context.Context, name string, timeout time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	if _, err := m.Wait(ctx, name); err != nil && !errors.Is(err, ErrLost) {
		return err
	}
	return nil
}
