package container

import (
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"nomad-driver-nspawn/nspawn/enter/user"
)

// forkedProcess is the process before it executes its command.
type forkedProcess struct {
	pid      int
	terminal *os.File // the end for enter.Run; nil without TTY
	socket   int      // see fork
}

// enterAndFork moves the calling thread into the container as far as a thread can be
// moved, and forks. The order matters. Files are opened and the user is looked up as the
// container's root, so before privileges are dropped. File descriptors are closed before
// the child becomes visible. Filters come last, because they were made for the payload,
// and may forbid the system calls used here.
func (todo *Instructions) enterAndFork() (forkedProcess, error) {
	if err := joinFiles(); err != nil {
		return forkedProcess{}, err
	}
	identity, err := user.Lookup("/", todo.User)
	if err != nil {
		return forkedProcess{}, err
	}
	stdio := [3]int{FDStdin, FDStdout, FDStderr}
	var terminal *os.File
	if todo.TTY {
		var child int
		if terminal, child, err = openTerminal(identity.UID); err != nil {
			return forkedProcess{}, err
		}
		stdio = [3]int{child, child, child}
	}
	env := identity.Environment(todo.Env)
	if _, set := user.LookupEnv(env, "TERM"); todo.TTY && !set {
		env = append(env, "TERM=xterm")
	}
	program, err := newProgram(todo.Argv, env, todo.TTY)
	if err != nil {
		return forkedProcess{}, err
	}
	// The pid namespace applies to children only; this thread stays invisible.
	if err := unix.Setns(FDPidns, unix.CLONE_NEWPID); err != nil {
		return forkedProcess{}, fmt.Errorf("join pid namespace: %w", err)
	}
	if err := isolate(stdio); err != nil {
		return forkedProcess{}, err
	}
	if err := todo.confine(identity); err != nil {
		return forkedProcess{}, err
	}
	pid, socket, err := program.fork()
	return forkedProcess{pid, terminal, socket}, err
}

// joinFiles gives the calling thread the leader's mount namespace and root directory.
func joinFiles() error {
	// A thread can join a mount namespace only if it does not share its root and working
	// directory with another thread.
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return fmt.Errorf("unshare root directory: %w", err)
	}
	if err := unix.Setns(FDMount, unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("join mount namespace: %w", err)
	}
	if err := unix.Fchdir(FDRoot); err != nil {
		return fmt.Errorf("change to leader's root directory: %w", err)
	}
	if err := unix.Chroot("."); err != nil {
		return fmt.Errorf("change root directory: %w", err)
	}
	unix.Umask(0o022)
	return nil
}

// isolate leaves the calling thread, and its children, no descriptors but stdio.
func isolate(stdio [3]int) error {
	if err := unix.Unshare(unix.CLONE_FILES); err != nil {
		return fmt.Errorf("unshare descriptors: %w", err)
	}
	for n, fd := range stdio {
		if err := unix.Dup3(fd, n, 0); err != nil {
			return fmt.Errorf("set descriptor %d: %w", n, err)
		}
	}
	if err := unix.CloseRange(3, 1<<31, 0); err != nil {
		return fmt.Errorf("close descriptors: %w", err)
	}
	return nil
}

// openTerminal opens a terminal of the container and gives it to the user uid, who can
// then open it again. It returns the end for enter.Run, and the descriptor of the other
// end.
func openTerminal(uid int) (*os.File, int, error) {
	pts, err := unix.Open("/dev/pts", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, -1, fmt.Errorf("open /dev/pts: %w", err)
	}
	defer unix.Close(pts)
	var fs unix.Statfs_t
	if err := unix.Fstatfs(pts, &fs); err != nil || fs.Type != unix.DEVPTS_SUPER_MAGIC {
		return nil, -1, fmt.Errorf("open terminal: /dev/pts is not a devpts (%v)", err)
	}
	// A container cannot create files in a devpts, but it can mount over its ptmx.
	fd, err := unix.Openat2(pts, "ptmx", &unix.OpenHow{
		Flags:   unix.O_RDWR | unix.O_NOCTTY | unix.O_NONBLOCK | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_NO_XDEV | unix.RESOLVE_NO_SYMLINKS,
	})
	if err != nil {
		return nil, -1, fmt.Errorf("open /dev/pts/ptmx: %w", err)
	}
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		return nil, -1, fmt.Errorf("unlock terminal: %w", err)
	}
	peer, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)
	if errno != 0 {
		return nil, -1, fmt.Errorf("open terminal: %w", errno)
	}
	if err := unix.Fchown(int(peer), uid, -1); err != nil {
		return nil, -1, fmt.Errorf("give terminal to uid %d: %w", uid, err)
	}
	return os.NewFile(uintptr(fd), "terminal"), int(peer), nil
}

// candidates returns the files that a command may refer to, in the order of PATH.
func candidates(command string, env []string) []string {
	if strings.Contains(command, "/") {
		return []string{command}
	}
	path, _ := user.LookupEnv(env, "PATH")
	var files []string
	for dir := range strings.SplitSeq(path, ":") {
		if dir != "" { // an empty entry would mean the working directory; it is ignored
			files = append(files, dir+"/"+command)
		}
	}
	return files
}
