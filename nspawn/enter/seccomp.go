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

// seccompFilters copies the seccomp programs of a process. ptrace(2) is the
// only way to get at them; it stops the process for about 0.2 ms.
func seccompFilters(ctx context.Context, pid int) ([][]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, traceTimeout)
	defer cancel()
	type result struct {
		filters [][]byte
		err     error
	}
	results := make(chan result, 1)
	go func() {
		// A tracer is a thread. Never unlocked, it ends with the goroutine,
		// and whatever it might still trace is let go.
		runtime.LockOSThread()
		filters, err := lockedTraceFilters(ctx, pid)
		results <- result{filters, err}
	}()
	select {
	case r := <-results:
		return r.filters, r.err
	case <-ctx.Done():
		// The thread hangs in a system call: in PTRACE_SEIZE, for as long as the
		// process is in an execve(2) that the container holds up. It has the lock, so
		// there is one such thread for a process.
		return nil, fmt.Errorf("copy seccomp filters: process %d does not stop: %w", pid, context.Cause(ctx))
	}
}

// traceTimeout is how long the process may take to stop. It need not ever: one
// in vfork(2) waits for its child, uninterruptibly.
const traceTimeout = 5 * time.Second

// pause waits a moment before another look at what no event reports to a thread:
// that a lock is free, or that a process has stopped for its tracer.
func pause(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(200 * time.Microsecond):
		return nil
	}
}

// lockedTraceFilters takes turns with others: a process has but one tracer.
// The lock is on the host's proc file system, out of the container's reach.
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

// detach lets the process go on, with the signal whose delivery the stop
// happened to be, if any: a stop of ours has an event above the signal.
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
