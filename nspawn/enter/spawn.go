package enter

import (
	"fmt"
	"os"
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// spawn is a program to start, ready for a child that may do nothing but system calls.
type spawn struct {
	file   *byte
	argv   []*byte
	envv   []*byte
	files  []int // the child's descriptors from 0 on
	moved  []int // room for copies of them
	cgroup int
}

// startIn starts a program in a cgroup, in a session of its own: the process that
// the shim forks must not be in the agent's, whose terminal it could open as /dev/tty.
//
// Package os/exec could do it, too. But it waits in vfork(2) for the execve(2) of its
// child, and a child that is born in a frozen cgroup never gets there. A thread in vfork
// holds up Go's next garbage collection, and with it the whole plugin. Here the
// child is a copy that nobody waits for. To move it to the cgroup later would take
// tens of milliseconds: that waits for an RCU grace period.
func startIn(cgroup *os.File, argv, env []string, files []*os.File) (child, error) {
	s := spawn{cgroup: int(cgroup.Fd()), moved: make([]int, len(files))}
	var err error
	if s.argv, err = syscall.SlicePtrFromStrings(argv); err != nil {
		return child{}, fmt.Errorf("encode arguments: %w", err)
	}
	if s.envv, err = syscall.SlicePtrFromStrings(env); err != nil {
		return child{}, fmt.Errorf("encode environment: %w", err)
	}
	s.file = s.argv[0]
	for _, file := range files {
		s.files = append(s.files, fileDescriptor(file))
	}
	pid, err := s.fork()
	runtime.KeepAlive(cgroup)
	runtime.KeepAlive(files)
	if err != nil {
		return child{}, fmt.Errorf("start %s in cgroup %s: %w", argv[0], cgroup.Name(), err)
	}
	return openChild(pid)
}

// fileDescriptor is -1 for a descriptor that the child does not get.
func fileDescriptor(file *os.File) int {
	if file == nil {
		return -1
	}
	return int(file.Fd())
}

// fork blocks all signals for its thread meanwhile: the child has no Go runtime left
// to handle one.
func (s *spawn) fork() (pid int, err error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	syscall.ForkLock.Lock() // nobody makes a descriptor that the child would inherit
	defer syscall.ForkLock.Unlock()
	var all, before unix.Sigset_t
	for n := range all.Val {
		all.Val[n] = ^all.Val[n]
	}
	if err := unix.PthreadSigmask(unix.SIG_SETMASK, &all, &before); err != nil {
		return 0, fmt.Errorf("block signals: %w", err)
	}
	pid, errno := s.cloneAndExec()
	if err := unix.PthreadSigmask(unix.SIG_SETMASK, &before, nil); err != nil {
		return 0, fmt.Errorf("restore signals: %w", err)
	}
	if errno != 0 {
		return 0, errno
	}
	return pid, nil
}

// cloneArgs is struct clone_args of clone3(2).
type cloneArgs struct {
	flags, pidfd, childTID, parentTID, exitSignal, stack, stackSize, tls, setTID, setTIDSize, cgroup uint64
}

// spawnFailed is the exit code of a child that could not become the program.
const spawnFailed = 126

// cloneAndExec is like package syscall's forkAndExecInChild, whose rules are that
// after the clone the child must not allocate, lock, or grow its stack: RawSyscall is
// assembly and as far as it may go.
//
//go:noinline
//go:norace
//go:nocheckptr
func (s *spawn) cloneAndExec() (pid int, errno syscall.Errno) {
	var (
		args  = cloneArgs{flags: unix.CLONE_INTO_CGROUP, exitSignal: uint64(unix.SIGCHLD), cgroup: uint64(s.cgroup)}
		root  = [2]byte{'/', 0}
		file  = unsafe.Pointer(s.file)
		argv  = unsafe.Pointer(&s.argv[0])
		envv  = unsafe.Pointer(&s.envv[0])
		files = s.files
		moved = s.moved
		none  uint64
		got   uintptr
	)
	got, _, errno = syscall.RawSyscall(unix.SYS_CLONE3, uintptr(unsafe.Pointer(&args)), unsafe.Sizeof(args), 0)
	if errno != 0 || got != 0 {
		return int(got), errno
	}

	// Here is the child.
	syscall.RawSyscall(unix.SYS_SETSID, 0, 0, 0)
	syscall.RawSyscall(unix.SYS_CHDIR, uintptr(unsafe.Pointer(&root)), 0, 0)
	for n := 0; n < len(files); n++ { // out of the way of those below
		if files[n] < 0 {
			continue
		}
		got, _, errno = syscall.RawSyscall(unix.SYS_FCNTL, uintptr(files[n]), unix.F_DUPFD_CLOEXEC, uintptr(len(files)))
		if errno != 0 {
			goto fail
		}
		moved[n] = int(got)
	}
	for n := 0; n < len(files); n++ {
		if files[n] < 0 {
			continue
		}
		if _, _, errno = syscall.RawSyscall(unix.SYS_DUP3, uintptr(moved[n]), uintptr(n), 0); errno != 0 {
			goto fail
		}
	}
	syscall.RawSyscall6(unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, uintptr(unsafe.Pointer(&none)), 0, 8, 0, 0)
	syscall.RawSyscall(unix.SYS_EXECVE, uintptr(file), uintptr(argv), uintptr(envv))
fail:
	for {
		syscall.RawSyscall(unix.SYS_EXIT_GROUP, spawnFailed, 0, 0)
	}
}
