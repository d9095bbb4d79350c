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

// Open returns a pidfd of exactly this process, or nil if the process has ended. It checks
// the process again after opening, in case another process has got its PID.
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

// KilledBy returns the signal that killed the process of a pidfd, or 0 if the process
// exited or the kernel cannot say.
//
// The exit status of systemd-nspawn does not say which signal killed the payload. The
// kernel does (PIDFD_GET_INFO with PIDFD_INFO_EXIT, Linux 6.15), if the pidfd was opened
// before the payload's end.
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

// Signal sends a signal to exactly this process.
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

// IsAlive reports whether the process has not ended yet.
func (p Process) IsAlive() bool { return unix.Kill(p.PID, 0) == nil }

// AwaitEnd returns when the main process of a unit has ended, or when ctx is done.
func AwaitEnd(ctx context.Context, pid int, unit string) {
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if err != nil {
		return
	}
	file := os.NewFile(uintptr(fd), "process") // epoll can wait for it
	defer file.Close()
	// Another process may have got its PID in the meantime.
	if group, err := cgroup.Of(pid); err != nil || !strings.Contains(group+"/", "/"+unit+"/") {
		return
	}
	defer context.AfterFunc(ctx, func() { file.Close() })() // ends the wait
	_ = pidfd.Await(file)
}
