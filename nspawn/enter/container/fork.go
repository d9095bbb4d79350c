package container

import (
	"fmt"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// program is a command, ready for a child that may do nothing but system calls.
type program struct {
	files []*byte // what may be meant, in the order of PATH
	argv  []*byte
	envv  []*byte
	tty   bool
}

func newProgram(argv, env []string, tty bool) (*program, error) {
	var err error
	p := &program{tty: tty}
	if p.argv, err = syscall.SlicePtrFromStrings(argv); err != nil {
		return nil, fmt.Errorf("encode arguments: %w", err)
	}
	if p.envv, err = syscall.SlicePtrFromStrings(env); err != nil {
		return nil, fmt.Errorf("encode environment: %w", err)
	}
	if p.files, err = syscall.SlicePtrFromStrings(candidates(argv[0], env)); err != nil {
		return nil, fmt.Errorf("encode command: %w", err)
	}
	p.files = p.files[:len(p.files)-1] // without the terminating nil
	return p, nil
}

// fork makes the child. It waits for a byte on the socket, executes the
// program and, if that fails, answers with a byte, the errno.
//
// Package syscall cannot do this: it shares the parent's memory with the child
// until execve, and the container, which sees the child, could write to it.
func (p *program) fork() (pid, socket int, err error) {
	ends, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, -1, fmt.Errorf("make socket pair: %w", err)
	}
	// No signal finds a Go handler in the child, which has no Go runtime left.
	var all unix.Sigset_t
	all.Val[0] = ^all.Val[0]
	if err := unix.PthreadSigmask(unix.SIG_SETMASK, &all, nil); err != nil {
		return 0, -1, fmt.Errorf("block signals: %w", err)
	}
	pid, errno := p.cloneAndExec(ends[0], ends[1])
	unix.Close(ends[1])
	if errno != 0 {
		return 0, -1, fmt.Errorf("fork: %w", errno)
	}
	return pid, ends[0], nil
}

// execute lets the child go on and waits until it has become the program.
func (n *forkedProcess) execute() unix.Errno {
	answer := []byte{1}
	if _, err := unix.Write(n.socket, answer); err != nil {
		return 0 // killed meanwhile, as its exit status tells
	}
	if got, err := unix.Read(n.socket, answer); err != nil || got == 0 {
		return 0
	}
	return unix.Errno(answer[0])
}

// signals is the number of signals on Linux, but for MIPS.
const signals = 64

// cloneAndExec is like package syscall's forkAndExecInChild, whose rules are
// that after the clone the child must not allocate, lock, or grow its stack:
// RawSyscall is assembly and as far as it may go.
//
//go:noinline
//go:norace
//go:nocheckptr
func (p *program) cloneAndExec(parentEnd, childEnd int) (pid int, errno syscall.Errno) {
	var (
		files   = p.files
		argv    = unsafe.Pointer(&p.argv[0])
		envv    = unsafe.Pointer(&p.envv[0])
		message [1]byte
		none    uint64
		dflt    [4]uint64 // struct sigaction with SIG_DFL
		got     uintptr
		failed  syscall.Errno
	)
	// CLONE_PARENT makes it the child of our parent, who will wait for it.
	got, _, errno = syscall.RawSyscall6(unix.SYS_CLONE, unix.CLONE_PARENT|uintptr(unix.SIGCHLD), 0, 0, 0, 0, 0)
	if errno != 0 || got != 0 {
		return int(got), errno
	}

	// Here is the child.
	syscall.RawSyscall(unix.SYS_CLOSE, uintptr(parentEnd), 0, 0)
	got, _, _ = syscall.RawSyscall(unix.SYS_READ, uintptr(childEnd), uintptr(unsafe.Pointer(&message)), 1)
	if got != 1 {
		goto fail // the shim is dead
	}
	for n := uintptr(1); n <= signals; n++ {
		syscall.RawSyscall6(unix.SYS_RT_SIGACTION, n, uintptr(unsafe.Pointer(&dflt)), 0, 8, 0, 0)
	}
	syscall.RawSyscall6(unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, uintptr(unsafe.Pointer(&none)), 0, 8, 0, 0)
	syscall.RawSyscall(unix.SYS_SETSID, 0, 0, 0)
	if p.tty {
		_, _, failed = syscall.RawSyscall(unix.SYS_IOCTL, 0, unix.TIOCSCTTY, 0)
		if failed != 0 {
			goto fail
		}
	}
	failed = unix.ENOENT
	for n := 0; n < len(files); n++ {
		_, _, errno = syscall.RawSyscall(unix.SYS_EXECVE, uintptr(unsafe.Pointer(files[n])), uintptr(argv), uintptr(envv))
		// As execvp(3) has it: go on looking, but remember what was there.
		if errno == unix.EACCES {
			failed = errno
		} else if errno != unix.ENOENT && errno != unix.ENOTDIR {
			failed = errno
			break
		}
	}
fail:
	message[0] = byte(failed)
	syscall.RawSyscall(unix.SYS_WRITE, uintptr(childEnd), uintptr(unsafe.Pointer(&message)), 1)
	for {
		syscall.RawSyscall(unix.SYS_EXIT_GROUP, 127, 0, 0)
	}
}
