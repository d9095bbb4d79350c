package nspawn

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"nomad-driver-nspawn/nspawn/enter"
	"nomad-driver-nspawn/nspawn/gate/inside"
	"nomad-driver-nspawn/nspawn/machine"
	"nomad-driver-nspawn/nspawn/process"
)

// errDeaf says that a signal would be lost on the payload.
var errDeaf = errors.New("the machine's init does not take the signal yet")

// unknownInitError says that an init cannot be asked to power off.
type unknownInitError struct {
	program string
	why     error
}

func (e *unknownInitError) Error() string {
	return fmt.Sprintf("Machine is killed when kill_timeout is over: its init %s is not systemd, and poweroff in it has failed (%v); "+
		"kill_signal of the task may name a signal that it takes", e.program, e.why)
}

// signalInit has a guest's init power off.
//
// A systemd that boots has neither blocked nor caught the signal yet, and the kernel drops
// it (pid_namespaces(7)); the same goes for a guest that waits at the gate. Such a guest
// has not begun to do anything. What others take cannot be seen, as they may wait by
// sigtimedwait(2): they get what the job names, or are powered off in their own way.
func (m *Manager) signalInit(ctx context.Context, name string, init process.Process, sig unix.Signal) error {
	program, err := init.Program()
	if err != nil {
		return os.ErrProcessDone
	}
	program = strings.TrimSuffix(program, " (deleted)")
	base := filepath.Base(program)
	switch {
	case program == inside.ShimPath, base == "systemd" && !init.Takes(sig):
		return errDeaf
	case base == "systemd", sig != machine.Halt:
		return init.Signal(sig)
	case base == "busybox" && filepath.Base(init.Argument0()) == "init":
		return init.Signal(unix.SIGUSR2) // halts it (busybox, init/init.c)
	}
	// sysvinit, OpenRC, runit and s6 listen to files, which their poweroff knows.
	code, err := m.Exec(ctx, name, enter.Command{Argv: []string{"poweroff"}})
	if err == nil && code != 0 {
		err = fmt.Errorf("exit status %d", code)
	}
	if err != nil && init.IsAlive() {
		return &unknownInitError{program: program, why: err}
	}
	return nil
}
