package nspawn

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"
	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"

	"nomad-driver-nspawn/e2e/host/hosttest"
	"nomad-driver-nspawn/nspawn/machine"
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
	must.NoError(t, NewManager(bus, DefaultDirs, nil).Stop(t.Context(), spec.Machine, spec.Mode, unix.SIGTERM, time.Minute, told(t)))
	must.Eq(t, Exit{Code: 5}, mustWait(t, m, spec.Machine))
}

// A payload that its init has yet to fork has not ended.
func TestHostPayloadIsAwaited(t *testing.T) {
	hosttest.Require(t)
	init := exec.Command("/bin/sh", "-c", "read go; sleep 1000 & wait")
	init.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWPID}
	input, err := init.StdinPipe()
	must.NoError(t, err)
	must.NoError(t, init.Start())
	payloads, errs := make(chan process, 1), make(chan error, 1)
	go func() {
		payload, err := findPayload(init.Process.Pid, machine.ProcessTwo)
		payloads <- payload
		errs <- err
	}()
	_, err = input.Write([]byte("go\n"))
	must.NoError(t, err)
	must.NoError(t, <-errs)
	must.Eq(t, 2, (<-payloads).inside)

	must.NoError(t, init.Process.Kill())
	must.Error(t, init.Wait())
	_, err = findPayload(init.Process.Pid, machine.ProcessTwo)
	must.ErrorIs(t, err, os.ErrProcessDone)
}
