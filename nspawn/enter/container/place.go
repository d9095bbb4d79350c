package container

import (
	"errors"
	"fmt"
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// placeMain starts a program in the cgroup of FDGroup, as a child of the plugin, and
// reports its PID.
//
// The plugin cannot do this itself. Go waits in vfork(2) for the execve(2) of its child,
// and a child that is created in a frozen cgroup never gets there. A fork without vfork
// waits for the kernel's lock of all cgroups, which a container can keep busy. In both
// cases the next garbage collection would wait for the thread, and the whole plugin for
// the garbage collection. Here, only a process is blocked that is not needed any more.
//
// Moving the program to the cgroup later would take tens of milliseconds, because it
// waits for an RCU grace period.
func placeMain(argv []string) error {
	// The program inherits the limits, which the plugin has raised by then.
	if err := awaitByte(); err != nil {
		return err
	}
	var s spawn
	var err error
	if s.argv, err = syscall.SlicePtrFromStrings(argv); err != nil {
		return fmt.Errorf("encode arguments: %w", err)
	}
	if s.envv, err = syscall.SlicePtrFromStrings(syscall.Environ()); err != nil {
		return fmt.Errorf("encode environment: %w", err)
	}
	runtime.LockOSThread()
	// No Go signal handler may run in the child, which has no Go runtime.
	var all unix.Sigset_t
	all.Val[0] = ^all.Val[0]
	if err := unix.PthreadSigmask(unix.SIG_SETMASK, &all, nil); err != nil {
		return fmt.Errorf("block signals: %w", err)
	}
	pid, errno := s.cloneAndExec()
	if errno != 0 {
		return fmt.Errorf("start %s in the container's cgroup: %w", argv[0], errno)
	}
	return send(Reply{Pid: pid}, nil)
}

// awaitByte waits for a byte from enter.Run.
func awaitByte() error {
	word := make([]byte, 1)
	for {
		n, err := unix.Read(FDReplies, word)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return fmt.Errorf("wait for the plugin: %w", err)
		case n == 0:
			return errors.New("wait for the plugin: it has given up")
		default:
			return nil
		}
	}
}

// spawn is a program to start, encoded for a child that can only make system calls.
type spawn struct {
	argv []*byte
	envv []*byte
}

// cloneArgs is struct clone_args of clone3(2).
type cloneArgs struct {
	flags, pidfd, childTID, parentTID, exitSignal, stack, stackSize, tls, setTID, setTIDSize, cgroup uint64
}

// cloneAndExec follows the same rules as program.cloneAndExec.
//
//go:noinline
//go:norace
//go:nocheckptr
func (s *spawn) cloneAndExec() (pid int, errno syscall.Errno) {
	var (
		// CLONE_PARENT makes it the plugin's child, with the same exit signal as ours.
		args = cloneArgs{flags: unix.CLONE_INTO_CGROUP | unix.CLONE_PARENT, cgroup: FDGroup}
		argv = unsafe.Pointer(&s.argv[0])
		envv = unsafe.Pointer(&s.envv[0])
		file = uintptr(unsafe.Pointer(s.argv[0]))
		none uint64
		got  uintptr
	)
	got, _, errno = syscall.RawSyscall(unix.SYS_CLONE3, uintptr(unsafe.Pointer(&args)), unsafe.Sizeof(args), 0)
	if errno != 0 || got != 0 {
		return int(got), errno
	}

	// From here on, this is the child.
	syscall.RawSyscall(unix.SYS_CLOSE, FDGroup, 0, 0)
	syscall.RawSyscall6(unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, uintptr(unsafe.Pointer(&none)), 0, 8, 0, 0)
	syscall.RawSyscall(unix.SYS_EXECVE, file, uintptr(argv), uintptr(envv))
	for {
		syscall.RawSyscall(unix.SYS_EXIT_GROUP, exitNotExecutable, 0, 0)
	}
}
