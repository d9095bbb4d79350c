package nspawn

import (
	"context"
	"errors"
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
