package idmap

import (
	"errors"
	"fmt"
	"os/exec"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// holder is a child of ours that does nothing but hold a user namespace of its own,
// which only a process can bring into being, and no thread of ours. It has ended
// already, and nobody has waited for it; or it is stopped.
type holder struct{ pid int }

// newHolder makes a holder in the way that is fast where we have it.
func newHolder() (holder, error) {
	if haveClone {
		return cloneHolder()
	}
	return stoppedHolder()
}

// cloneHolder does not start the process as others are started: package syscall
// copies the address space for a child in a user namespace, after which each page
// that the plugin writes to is copied, too. In a start of 100 ms, that took 25.
// unshare(1) of util-linux would need no assembly, but a program to be run.
func cloneHolder() (holder, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	// It shares our memory, so no handler of signals may run in it.
	var all, before unix.Sigset_t
	all.Val[0] = ^all.Val[0]
	if err := unix.PthreadSigmask(unix.SIG_SETMASK, &all, &before); err != nil {
		return holder{}, fmt.Errorf("block signals: %w", err)
	}
	pid := cloneAndExit(unix.CLONE_NEWUSER | unix.CLONE_VM | unix.CLONE_VFORK | uintptr(unix.SIGCHLD))
	if err := unix.PthreadSigmask(unix.SIG_SETMASK, &before, nil); err != nil {
		return holder{}, fmt.Errorf("unblock signals: %w", err)
	}
	if pid < 0 {
		return holder{}, fmt.Errorf("make process: %w", unix.Errno(-pid))
	}
	return holder{pid: pid}, nil
}

// stoppedHolder is slower, and the same on each architecture. The process is our
// own executable, which a tracer stops before its first instruction.
func stoppedHolder() (holder, error) {
	runtime.LockOSThread() // a process has one thread for its tracer
	defer runtime.UnlockOSThread()
	command := exec.Command("/proc/self/exe")
	command.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWUSER, Ptrace: true, Pdeathsig: unix.SIGKILL}
	if err := command.Start(); err != nil {
		return holder{}, fmt.Errorf("make process: %w", err)
	}
	return holder{pid: command.Process.Pid}, nil
}

// release lets the process go, and its user namespace unless it is held otherwise.
func (h holder) release() {
	// The PID is the process's until we have waited for it.
	_ = unix.Kill(h.pid, unix.SIGKILL)
	for {
		var status unix.WaitStatus
		_, err := unix.Wait4(h.pid, &status, unix.WALL, nil)
		if errors.Is(err, unix.EINTR) || err == nil && status.Stopped() {
			continue
		}
		return
	}
}
