package container

import (
	"fmt"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// program is a command, encoded for a child that can only make system calls.
type program struct {
	files []*byte // files that the command may refer to, in the order of PATH
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
	p.files = p.files[:len(p.files)-1] // remove the terminating nil
	return p, nil
}

// fork creates the child. The child waits for a byte on the socket, executes the program
// and, if that fails, sends a byte with the errno.
//
// Package syscall cannot be used: it shares the parent's memory with the child until
// execve, and the container, which can see the child, could write to that memory.
func (p *program) fork() (pid, socket int, err error) {
	ends, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, -1, fmt.Errorf("make socket pair: %w", err)
	}
	// No Go signal handler may run in the child, which has no Go runtime.
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

// execute lets the child continue, and waits until it has executed the program.
func (n *forkedProcess) execute() unix.Errno {
	answer := []byte{1}
	if _, err := unix.Write(n.socket, answer); err != nil {
		return 0 // the child has been killed, and its exit status shows it
	}
	if got, err := unix.Read(n.socket, answer); err != nil || got == 0 {
		return 0
	}
	return unix.Errno(answer[0])
}

// signals is the number of signals on Linux, except on MIPS.
const signals = 64

// cloneAndExec follows the rules of forkAndExecInChild in package syscall: after the
// clone, the child must not allocate memory, take locks, or grow its stack. RawSyscall is
// written in assembly, and is all that the child may call.
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
	// CLONE_PARENT makes it a child of our parent, which waits for it.
	got, _, errno = syscall.RawSyscall6(unix.SYS_CLONE, unix.CLONE_PARENT|uintptr(unix.SIGCHLD), 0, 0, 0, 0, 0)
	if errno != 0 || got != 0 {
		return int(got), errno
	}

	// From here on, this is the child.
	syscall.RawSyscall(unix.SYS_CLOSE, uintptr(parentEnd), 0, 0)
	got, _, _ = syscall.RawSyscall(unix.SYS_READ, uintptr(childEnd), uintptr(unsafe.Pointer(&message)), 1)
	if got != 1 {
		goto fail // the shim has died
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
		// As in execvp(3), continue the search, but remember EACCES.
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
