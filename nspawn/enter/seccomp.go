package enter

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// seccompFilters copies the seccomp programs of a process. ptrace(2) is the only
// interface for that; it stops the process for about 0.2 ms.
func seccompFilters(ctx context.Context, pid int) ([][]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, traceTimeout)
	defer cancel()
	type result struct {
		filters [][]byte
		err     error
	}
	results := make(chan result, 1)
	go func() {
		// The tracer of a process is a thread. This one stays locked, so it ends with the
		// goroutine, and then releases a process that it might still trace.
		runtime.LockOSThread()
		filters, err := lockedTraceFilters(ctx, pid)
		results <- result{filters, err}
	}()
	select {
	case r := <-results:
		return r.filters, r.err
	case <-ctx.Done():
		// The thread hangs in PTRACE_SEIZE for as long as the process is in an execve(2)
		// that the container delays. It holds the lock, so there is only one such thread
		// per process.
		return nil, fmt.Errorf("copy seccomp filters: process %d does not stop: %w", pid, context.Cause(ctx))
	}
}

// traceTimeout is how long the process may take to stop. It may never stop: a process in
// vfork(2) waits uninterruptibly for its child.
const traceTimeout = 5 * time.Second

// pause waits a moment before a state is checked again that no event reports to a thread:
// a lock is free, or a process has stopped for its tracer.
func pause(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(200 * time.Microsecond):
		return nil
	}
}

// lockedTraceFilters calls traceFilters under a lock, because a process can have only one
// tracer. The lock is a file of the host's proc file system, which the container cannot
// reach.
func lockedTraceFilters(ctx context.Context, pid int) ([][]byte, error) {
	dir, err := os.Open(fmt.Sprintf("/proc/%d", pid))
	if err != nil {
		return nil, fmt.Errorf("copy seccomp filters: %w", err)
	}
	defer dir.Close()
	for {
		err := unix.Flock(int(dir.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return traceFilters(ctx, pid)
		}
		if errors.Is(err, unix.EWOULDBLOCK) || errors.Is(err, unix.EINTR) {
			err = pause(ctx)
		}
		if err != nil {
			return nil, fmt.Errorf("copy seccomp filters: lock process %d: %w", pid, err)
		}
	}
}

func traceFilters(ctx context.Context, pid int) (filters [][]byte, err error) {
	if err := unix.PtraceSeize(pid); err != nil {
		return nil, fmt.Errorf("copy seccomp filters: trace process (is it being debugged?): %w", err)
	}
	if err := unix.PtraceInterrupt(pid); err != nil {
		return nil, fmt.Errorf("copy seccomp filters: stop process: %w", err)
	}
	status, err := waitStop(ctx, pid)
	if err != nil {
		return nil, fmt.Errorf("copy seccomp filters: %w", err)
	}
	defer func() {
		err = errors.Join(err, detach(pid, status))
	}()
	for n := 0; ; n++ {
		filter, err := getFilter(pid, n)
		if errors.Is(err, unix.ENOENT) && n > 0 {
			return filters, nil
		}
		if err != nil {
			return nil, fmt.Errorf("copy seccomp filter %d (needs CAP_SYS_ADMIN and no seccomp filter on this process): %w", n, err)
		}
		filters = append(filters, filter)
	}
}

func waitStop(ctx context.Context, pid int) (status unix.WaitStatus, err error) {
	for {
		stopped, err := unix.Wait4(pid, &status, unix.WALL|unix.WNOHANG, nil)
		switch {
		case err != nil && !errors.Is(err, unix.EINTR):
			return status, err
		case stopped == pid && !status.Stopped():
			return status, errors.New("process has ended")
		case stopped == pid:
			return status, nil
		}
		if err := pause(ctx); err != nil {
			return status, fmt.Errorf("wait for process %d to stop: %w", pid, err)
		}
	}
}

// detach lets the process continue. If the stop was the delivery of a signal, it delivers
// the signal; a stop that we have caused has an event number above the signal.
func detach(pid int, status unix.WaitStatus) error {
	signal := 0
	if status>>16 == 0 {
		signal = int(status.StopSignal())
	}
	_, _, errno := unix.Syscall6(unix.SYS_PTRACE, unix.PTRACE_DETACH, uintptr(pid), 0, uintptr(signal), 0, 0)
	if errno != 0 && errno != unix.ESRCH {
		return fmt.Errorf("detach from process %d: %w", pid, errno)
	}
	return nil
}

// getFilter returns the n-th oldest filter as an array of struct sock_filter.
func getFilter(pid, n int) ([]byte, error) {
	count, _, errno := unix.Syscall6(unix.SYS_PTRACE, unix.PTRACE_SECCOMP_GET_FILTER, uintptr(pid), uintptr(n), 0, 0, 0)
	if errno != 0 {
		return nil, errno
	}
	filter := make([]byte, int(count)*unix.SizeofSockFilter)
	_, _, errno = unix.Syscall6(unix.SYS_PTRACE, unix.PTRACE_SECCOMP_GET_FILTER, uintptr(pid), uintptr(n),
		uintptr(unsafe.Pointer(unsafe.SliceData(filter))), 0, 0)
	if errno != 0 {
		return nil, errno
	}
	return filter, nil
}
