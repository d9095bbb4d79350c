package enter

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"nomad-driver-nspawn/nspawn/pidfd"
)

// endTimeout is how long a process may take to end after it was killed. It may never end:
// it may hang in a file system of the container, or a process of the container may trace
// it and never release it to its parent.
const endTimeout = 5 * time.Second

// child is a child process. Waiting for it does not block an OS thread: Go aborts a
// program that has 10000 threads.
type child struct {
	pid int
	fd  *os.File // its pidfd
}

func openChild(pid int) (child, error) {
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if err != nil {
		_ = unix.Kill(pid, unix.SIGKILL)
		reapLater(pid)
		return child{}, fmt.Errorf("open pidfd of child %d: %w", pid, err)
	}
	return child{pid: pid, fd: os.NewFile(uintptr(fd), "child")}, nil
}

func (c child) close() {
	if c.fd != nil {
		c.fd.Close()
	}
}

// await waits until the child has ended or ctx is done.
func (c child) await(ctx context.Context) error {
	release := guard(ctx, func() { _ = c.fd.SetReadDeadline(time.Unix(1, 0)) })
	err := pidfd.Await(c.fd)
	release()
	_ = c.fd.SetReadDeadline(time.Time{})
	if err != nil && ctx.Err() != nil {
		return fmt.Errorf("wait for process %d: %w", c.pid, context.Cause(ctx))
	}
	return err
}

// reap waits for a child that was killed or is about to exit, and returns its status.
// After endTimeout it returns an error, and the child is reaped later, when it ends.
func (c child) reap() (status unix.WaitStatus, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), endTimeout)
	defer cancel()
	if err := c.await(ctx); err != nil {
		reapLater(c.pid)
		return 0, fmt.Errorf("process %d does not end, although it was killed: %w", c.pid, err)
	}
	for {
		pid, err := unix.Wait4(c.pid, &status, unix.WNOHANG, nil)
		switch {
		case pid == c.pid:
			return status, nil
		case err != nil && !errors.Is(err, unix.EINTR):
			return 0, fmt.Errorf("wait for process %d: %w", c.pid, err)
		case pause(ctx) != nil:
			reapLater(c.pid)
			return 0, fmt.Errorf("process %d has ended, but its tracer does not release it", c.pid)
		}
	}
}

// reapGroup reaps the children in a process group that was killed. It returns the status
// of one that failed.
func reapGroup(pgid int) (failed unix.WaitStatus, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), endTimeout)
	defer cancel()
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-pgid, &status, unix.WNOHANG, nil)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil: // ECHILD: all have been reaped
			return failed, nil
		case pid > 0:
			if failed == 0 || failed.Signaled() {
				failed = status
			}
		case pause(ctx) != nil:
			reapLater(-pgid)
			return failed, fmt.Errorf("processes of group %d do not end, although they were killed", pgid)
		}
	}
}

// unreaped lists the children that are reaped in the background.
var unreaped struct {
	sync.Mutex
	pids []int
}

// reapInterval is the time between two attempts to reap them. No event reports that a
// tracer has released a child.
const reapInterval = time.Second

// reapLater reaps a child when it has ended. A negative number means the children of a
// process group.
func reapLater(pid int) {
	unreaped.Lock()
	defer unreaped.Unlock()
	if reaped(pid) {
		return
	}
	unreaped.pids = append(unreaped.pids, pid)
	if len(unreaped.pids) == 1 {
		go reapUnreaped()
	}
}

// reapUnreaped runs as long as there are unreaped children.
func reapUnreaped() {
	tick := time.NewTicker(reapInterval)
	defer tick.Stop()
	for range tick.C {
		unreaped.Lock()
		left := unreaped.pids[:0]
		for _, pid := range unreaped.pids {
			if !reaped(pid) {
				left = append(left, pid)
			}
		}
		unreaped.pids = left
		unreaped.Unlock()
		if len(left) == 0 {
			return
		}
	}
}

// reaped reaps the children that have ended, and reports whether none is left.
func reaped(pid int) bool {
	for {
		got, err := unix.Wait4(pid, nil, unix.WNOHANG, nil)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil: // ECHILD
			return true
		case got == 0:
			return false
		case pid > 0:
			return true
		}
	}
}
