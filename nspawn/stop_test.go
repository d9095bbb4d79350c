package nspawn

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	sd "github.com/coreos/go-systemd/v22/dbus"
	"github.com/godbus/dbus/v5"
	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"

	"nomad-driver-nspawn/nspawn/dirs"
	"nomad-driver-nspawn/nspawn/machine"
	"nomad-driver-nspawn/nspawn/process"
	"nomad-driver-nspawn/nspawn/systemd"
)

// TestHostStopIsGracefulWithoutBus checks that a bus that is away for a moment does not
// shorten the time that a payload has to end.
func TestHostStopIsGracefulWithoutBus(t *testing.T) {
	var dials atomic.Int32
	bus := systemd.New(func(ctx context.Context) (*dbus.Conn, error) {
		if dials.Add(1) == 1 {
			return nil, errors.New("no bus yet")
		}
		return systemd.SystemBus(ctx)
	})
	t.Cleanup(bus.Close)
	m := newManager(t)
	spec := newMachine(t, m, "trap 'exit 5' TERM; while :; do sleep 1000 & wait $!; done")
	mustStart(t, m, spec)
	awaitTrap(t, m, spec)
	must.NoError(t, NewManager(bus, dirs.Default, nil).Stop(t.Context(), spec.Machine, spec.Mode, unix.SIGTERM, time.Minute, told(t)))
	must.Eq(t, Exit{Code: 5}, mustWait(t, m, spec.Machine))
}

// An nspawn whose leader has ended tidies up, which takes its time on a loaded host. It is not
// killed meanwhile, because then nobody would learn how the payload has ended.
func TestHostStopLetsTidyUp(t *testing.T) {
	m := newManager(t)
	spec := newMachine(t, m, "")
	must.NoError(t, os.MkdirAll(m.dirs.Machine(spec.Machine), 0o700))
	must.NoError(t, os.WriteFile(m.dirs.Begun(spec.Machine), []byte("1 1 told\n1 1 begun\n"), 0o600))
	tidy := filepath.Join(t.TempDir(), "tidy")
	must.NoError(t, unix.Mkfifo(tidy, 0o600))
	// It has no child that is PID 1 of a namespace, as an nspawn that tidies up.
	must.NoError(t, m.bus.StartTransientUnit(t.Context(), machine.UnitName(spec.Machine), []systemd.Property{
		sd.PropExecStart([]string{"/bin/sh", "-c", "read line <" + tidy + "; exit 7"}, false),
		systemd.NewProperty("RemainAfterExit", true),
	}))
	stopped := make(chan error, 1)
	go func() { stopped <- m.Stop(t.Context(), spec.Machine, spec.Mode, unix.SIGTERM, 0, told(t)) }()
	select {
	case err := <-stopped:
		must.Unreachable(t, must.Sprint("it was killed: ", err))
	case <-time.After(3 * killLeaderAgain):
	}
	must.NoError(t, os.WriteFile(tidy, []byte("done\n"), 0))
	must.NoError(t, <-stopped)
	must.Eq(t, Exit{Code: 7}, mustWait(t, m, spec.Machine))
}

func TestHostStopIsGraceful(t *testing.T) {
	m := newManager(t)
	for _, mode := range []machine.Mode{machine.ProcessOne, machine.ProcessTwo} {
		spec := newMachine(t, m, "trap 'echo bye; exit 5' TERM; echo up; while :; do sleep 1000 & wait $!; done")
		spec.Mode = mode
		out := mustStart(t, m, spec)
		awaitTrap(t, m, spec)
		begin := time.Now()
		must.NoError(t, m.Stop(t.Context(), spec.Machine, mode, unix.SIGTERM, time.Minute, told(t)))
		must.Less(t, 50*time.Second, time.Since(begin)) // not the minute after which it is killed
		must.Eq(t, Exit{Code: 5}, mustWait(t, m, spec.Machine))
		must.NoError(t, m.Remove(t.Context(), spec.Machine))
		must.Eq(t, "up\nbye\n", <-out.stdout)
	}
}

// awaitTrap returns when the shell of the machine waits for its child. By then it has set
// its traps.
func awaitTrap(t *testing.T, m *Manager, spec machine.Spec) {
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		leader, err := m.leader(t.Context(), spec.Machine)
		must.NoError(t, err)
		if payload, err := process.Payload(leader, spec.Mode); err == nil {
			children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", payload.PID, payload.PID))
			if err == nil && len(children) > 0 {
				return
			}
		}
		must.True(t, time.Now().Before(deadline), must.Sprint("the payload's child does not appear"))
	}
}

func TestHostStopKillsAfterTimeout(t *testing.T) {
	m := newManager(t)
	spec := newMachine(t, m, "trap '' TERM; while :; do sleep 1000; done")
	mustStart(t, m, spec)
	awaitTrap(t, m, spec)
	begin := time.Now()
	must.NoError(t, m.Stop(t.Context(), spec.Machine, spec.Mode, unix.SIGTERM, 300*time.Millisecond, told(t)))
	took := time.Since(begin)
	must.GreaterEq(t, 300*time.Millisecond, took)
	must.Less(t, 30*time.Second, took) // systemd's own timeout is 90 s
	mustWait(t, m, spec.Machine)
}

// TestHostBootStopsAtOnce checks that a guest can be stopped before it accepts a signal.
// Nothing is lost, because it has not done anything yet.
func TestHostBootStopsAtOnce(t *testing.T) {
	m := newManager(t)
	spec := newBooted(t, m)
	mustStart(t, m, spec)
	begin := time.Now()
	must.NoError(t, m.Stop(t.Context(), spec.Machine, spec.Mode, machine.Halt, time.Minute, told(t)))
	must.Less(t, 50*time.Second, time.Since(begin)) // not the minute after which it is killed
	mustWait(t, m, spec.Machine)
}

func TestHostBootStops(t *testing.T) {
	m := newManager(t)
	spec := newBooted(t, m)
	awaitEvent(t, mustStart(t, m, spec), Ready)
	registered, err := m.bus.Machine(t.Context(), spec.Machine)
	must.NoError(t, err)
	must.Eq(t, machine.UnitName(spec.Machine), registered.Unit)
	must.NoError(t, m.Stop(t.Context(), spec.Machine, spec.Mode, machine.Halt, time.Minute, told(t)))
	must.Eq(t, Exit{}, mustWait(t, m, spec.Machine))
}
