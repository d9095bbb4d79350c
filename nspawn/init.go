package nspawn

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"nomad-driver-nspawn/nspawn/enter"
	"nomad-driver-nspawn/nspawn/gate/inside"
	"nomad-driver-nspawn/nspawn/machine"
	"nomad-driver-nspawn/nspawn/process"
)

// errSignalBlocked means that the payload would not receive a signal.
var errSignalBlocked = errors.New("the machine's init does not take the signal yet")

// unknownInitError means that the driver does not know how to ask an init to power off.
type unknownInitError struct {
	program string
	why     error
}

func (e *unknownInitError) Error() string {
	return fmt.Sprintf("Machine is killed when kill_timeout is over: its init %s is not systemd, and poweroff in it has failed (%v); "+
		"kill_signal of the task may name a signal that it takes", e.program, e.why)
}

// signalInit asks a guest's init to power off.
//
// While systemd boots, it neither blocks nor catches the signal yet, and the kernel drops
// it (pid_namespaces(7)). The same is true for a guest that waits at the gate. Such a
// guest has not done anything yet. Which signals other inits accept cannot be seen,
// because they may wait with sigtimedwait(2). They get the signal that the job names, or
// are powered off in their own way.
func (m *Manager) signalInit(ctx context.Context, name string, init process.Process, sig unix.Signal) error {
	program, err := init.Program()
	if err != nil {
		return os.ErrProcessDone
	}
	program = strings.TrimSuffix(program, " (deleted)")
	base := filepath.Base(program)
	switch {
	case program == inside.ShimPath, base == "systemd" && !init.Takes(sig):
		return errSignalBlocked
	case base == "systemd", sig != machine.Halt:
		return init.Signal(sig)
	case base == "busybox" && filepath.Base(init.Argument0()) == "init":
		return init.Signal(unix.SIGUSR2) // halts busybox (init/init.c)
	case base == "openrc-init":
		// It has no poweroff of its own. That of busybox, as in Alpine, does not reach it.
		return init.Signal(unix.SIGTERM)
	}
	err = m.powerOff(ctx, name, base)
	switch {
	case err == nil || !init.IsAlive():
		return nil
	case base == "s6-svscan": // the guest has no s6-linux-init, which would bring a poweroff
		return init.Signal(unix.SIGTERM)
	}
	return &unknownInitError{program: program, why: err}
}

// runitPause is the time after which runit is asked again. In its first stage it ignores
// requests.
const runitPause = 3 * time.Second

// powerOff runs the guest's own poweroff. sysvinit, runit and s6-linux-init read requests
// from files, which it knows.
func (m *Manager) powerOff(ctx context.Context, name, base string) error {
	for {
		code, err := m.Exec(ctx, name, enter.Command{Argv: []string{"poweroff"}})
		if err == nil && code != 0 {
			err = fmt.Errorf("exit status %d", code)
		}
		if err != nil || base != "runit" {
			return err
		}
		if m.waitFor(ctx, name, runitPause) == nil || ctx.Err() != nil {
			return nil
		}
	}
}
