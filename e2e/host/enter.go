package host

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// enterMain runs a command in a host: CGROUP LEADER NAME ARG…, with its own environment
// and standard streams, and returns its exit status as a shell would. It is a child of the
// calling process, so that the caller has an ordinary child to signal and to wait for.
func enterMain(args []string) int {
	code, err := enter(args[0], args[1], args[2], args[3:])
	if err != nil {
		fmt.Fprintln(os.Stderr, "disposable host:", err)
	}
	return code
}

func enter(cgroup, leader, name string, args []string) (int, error) {
	if err := joinCgroup(execCgroup(cgroup)); err != nil {
		return 125, err
	}
	if err := joinNamespaces(leader); err != nil {
		return 125, err
	}
	unix.Umask(0o022)
	// If this process is killed, the command must be killed, too. Go's own Pdeathsig kills
	// its child at once here: the child compares getppid with its parent's PID, and they
	// differ across a pid namespace.
	cmd := exec.Command("setpriv", append([]string{"--pdeathsig", "KILL", "--", name}, args...)...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{}
	signals := forwarded(cmd)
	if err := cmd.Start(); err != nil {
		return 127, err
	}
	go func() {
		for s := range signals {
			_ = cmd.Process.Signal(s)
		}
	}()
	err := cmd.Wait()
	if status, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		return 128 + int(status.Signal()), nil
	}
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
		return 125, err
	}
	return cmd.ProcessState.ExitCode(), nil
}

// forwarded makes sure that each signal reaches the command exactly once. At a terminal,
// the command shares the foreground process group and gets the terminal's signals itself.
// Otherwise it has a group of its own and gets the signals that this process gets.
func forwarded(cmd *exec.Cmd) <-chan os.Signal {
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGUSR1, syscall.SIGUSR2)
	if _, err := unix.IoctlGetTermios(0, unix.TCGETS); err == nil {
		signal.Notify(make(chan os.Signal, 1), syscall.SIGINT, syscall.SIGQUIT, syscall.SIGTSTP)
		return signals
	}
	signal.Notify(signals, syscall.SIGINT, syscall.SIGQUIT)
	cmd.SysProcAttr.Setpgid = true
	return signals
}

// joinNamespaces moves the calling thread into the host's namespaces. The pid namespace
// takes effect for its children. setns refuses the mount namespace while threads share
// their root and working directory, hence CLONE_FS.
func joinNamespaces(leader string) error {
	pid, err := strconv.Atoi(leader)
	if err != nil {
		return fmt.Errorf("parse leader: %w", err)
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return fmt.Errorf("find PID 1 of the host, which may be down: %w", err)
	}
	defer unix.Close(fd)
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return fmt.Errorf("unshare working directory: %w", err)
	}
	const namespaces = unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWNET |
		unix.CLONE_NEWUTS | unix.CLONE_NEWIPC | unix.CLONE_NEWCGROUP
	if err := unix.Setns(fd, namespaces); err != nil {
		return fmt.Errorf("enter namespaces of the host: %w", err)
	}
	return nil
}
