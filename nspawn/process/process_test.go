package process

import (
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"testing"

	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"

	"nomad-driver-nspawn/e2e/host/hosttest"
	"nomad-driver-nspawn/nspawn/machine"
)

func TestIdentity(t *testing.T) {
	self := Process{PID: os.Getpid()}
	identity, err := self.Identity()
	must.NoError(t, err)
	must.StrHasPrefix(t, fmt.Sprintf("%d ", os.Getpid()), identity)
}

// A process may end at any time, and so before each look at it.
func TestEnded(t *testing.T) {
	child := exec.Command("/bin/true")
	must.NoError(t, child.Run())
	ended := Process{PID: child.Process.Pid}
	_, err := Read(ended.PID)
	must.ErrorIs(t, err, os.ErrProcessDone)
	_, err = Leader(ended.PID)
	must.ErrorIs(t, err, os.ErrProcessDone)
	_, err = ended.Identity()
	must.ErrorIs(t, err, os.ErrProcessDone)
	must.ErrorIs(t, ended.Signal(unix.SIGTERM), os.ErrProcessDone)
}

// A payload that its init has yet to fork has not ended.
func TestHostPayloadIsAwaited(t *testing.T) {
	hosttest.Require(t)
	init := exec.Command("/bin/sh", "-c", "read go; sleep 1000 & wait")
	init.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWPID}
	input, err := init.StdinPipe()
	must.NoError(t, err)
	must.NoError(t, init.Start())
	payloads, errs := make(chan Process, 1), make(chan error, 1)
	go func() {
		payload, err := FindPayload(init.Process.Pid, machine.ProcessTwo)
		payloads <- payload
		errs <- err
	}()
	_, err = input.Write([]byte("go\n"))
	must.NoError(t, err)
	must.NoError(t, <-errs)
	must.Eq(t, 2, (<-payloads).Inside)

	must.NoError(t, init.Process.Kill())
	must.Error(t, init.Wait())
	_, err = FindPayload(init.Process.Pid, machine.ProcessTwo)
	must.ErrorIs(t, err, os.ErrProcessDone)
}
