package nspawn

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"
	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"

	"nomad-driver-nspawn/nspawn/dirs"
	"nomad-driver-nspawn/nspawn/systemd"
)

// A bus that is away for a moment takes nothing of the time that a payload has to end.
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
