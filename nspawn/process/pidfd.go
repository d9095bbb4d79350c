package process

import (
	"context"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"nomad-driver-nspawn/nspawn/cgroup"
	"nomad-driver-nspawn/nspawn/pidfd"
)

// Open returns a pidfd of just this process, nil if it is gone: it is looked at
// again, so that no other process that got its PID can be meant.
func (p Process) Open() *os.File {
	fd, err := unix.PidfdOpen(p.PID, 0)
	if err != nil {
		return nil
	}
	file := os.NewFile(uintptr(fd), "payload")
	if now, err := Read(p.PID); err != nil || now != p {
		file.Close()
		return nil
	}
	return file
}

// KilledBy is the signal that killed the process of a pidfd, 0 if it exited or
// the kernel does not tell.
//
// The exit status of systemd-nspawn does not tell which signal killed the
// payload. Who has held a pidfd of the payload from before its end can ask the
// kernel for that (PIDFD_GET_INFO with PIDFD_INFO_EXIT, Linux 6.15).
func KilledBy(pidfd *os.File) int {
	info := unix.PidfdInfo{Mask: unix.PIDFD_INFO_EXIT}
	if err := unix.IoctlPidfdInfo(int(pidfd.Fd()), &info); err != nil || info.Mask&unix.PIDFD_INFO_EXIT == 0 {
		return 0
	}
	if status := unix.WaitStatus(info.Exit_code); status.Signaled() {
		return int(status.Signal())
	}
	return 0
}

// Signal sends a signal to just this process.
func (p Process) Signal(sig unix.Signal) error {
	file := p.Open()
	if file == nil {
		return fmt.Errorf("signal process %d: %w", p.PID, os.ErrProcessDone)
	}
	defer file.Close()
	if err := unix.PidfdSendSignal(int(file.Fd()), sig, nil, 0); err != nil {
		return fmt.Errorf("signal process %d: %w", p.PID, done(err))
	}
	return nil
}

// IsAlive reports whether a process has not ended yet.
func (p Process) IsAlive() bool { return unix.Kill(p.PID, 0) == nil }

// AwaitEnd returns when the main process of a unit has ended, or ctx is done.
func AwaitEnd(ctx context.Context, pid int, unit string) {
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if err != nil {
		return
	}
	file := os.NewFile(uintptr(fd), "process") // which epoll can wait for
	defer file.Close()
	// Another may have got its PID meanwhile.
	if group, err := cgroup.Of(pid); err != nil || !strings.Contains(group+"/", "/"+unit+"/") {
		return
	}
	defer context.AfterFunc(ctx, func() { file.Close() })() // which ends the wait
	_ = pidfd.Await(file)
}
