package idmap

import (
	"errors"
	"fmt"
	"os/exec"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// holder is a child process that only holds a user namespace of its own. Only a process
// can create a user namespace for this; a thread of ours cannot. The process is a zombie,
// or it is stopped.
type holder struct{ pid int }

// newHolder makes a holder in the fastest way that this architecture has.
func newHolder() (holder, error) {
	if haveClone {
		return cloneHolder()
	}
	return stoppedHolder()
}

// cloneHolder makes a holder by a clone(2) that shares our memory.
//
// Package syscall would copy the address space for a child in a user namespace, and then
// every page that the plugin writes to would be copied, too. That took 25 ms of a start
// of 100 ms. unshare(1) of util-linux would need no assembly, but would have to be
// executed.
func cloneHolder() (holder, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	// The child shares our memory, so no signal handler may run in it.
	var all, before unix.Sigset_t
	all.Val[0] = ^all.Val[0]
	if err := unix.PthreadSigmask(unix.SIG_SETMASK, &all, &before); err != nil {
		return holder{}, fmt.Errorf("block signals: %w", err)
	}
	// It shares our descriptors, too. With copies, a file that another goroutine closes would
	// stay open until the child is gone, and a program that it writes could not be executed.
	pid := cloneAndExit(unix.CLONE_NEWUSER | unix.CLONE_VM | unix.CLONE_FILES | unix.CLONE_VFORK | uintptr(unix.SIGCHLD))
	if err := unix.PthreadSigmask(unix.SIG_SETMASK, &before, nil); err != nil {
		return holder{}, fmt.Errorf("unblock signals: %w", err)
	}
	if pid < 0 {
		return holder{}, fmt.Errorf("make process: %w", unix.Errno(-pid))
	}
	return holder{pid: pid}, nil
}

// stoppedHolder makes a holder from our own executable, stopped by ptrace(2) before its
// first instruction. It is slower than cloneHolder, but works on every architecture.
func stoppedHolder() (holder, error) {
	runtime.LockOSThread() // the tracer of a process is a thread
	defer runtime.UnlockOSThread()
	command := exec.Command("/proc/self/exe")
	command.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWUSER, Ptrace: true, Pdeathsig: unix.SIGKILL}
	if err := command.Start(); err != nil {
		return holder{}, fmt.Errorf("make process: %w", err)
	}
	return holder{pid: command.Process.Pid}, nil
}

// release ends the process. Its user namespace ends too, unless something else holds it.
func (h holder) release() {
	// The PID cannot be reused before we have waited for the process.
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
