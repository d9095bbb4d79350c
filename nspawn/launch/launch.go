// Package launch is the command of a machine's unit, run at each start and at each reboot
// of the guest. It enters the machine's mount namespace, secures the places in the root to
// which systemd-nspawn writes, and executes systemd-nspawn.
package launch

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"

	"golang.org/x/sys/unix"

	"nomad-driver-nspawn/nspawn/places"
)

// Argument is the first argument of a program that must call Main.
const Argument = "launch"

// Launch describes how a machine is started.
type Launch struct {
	Program   string // program that handles Argument
	Keeper    string // file that pins the namespace in which pins are mounted, see package stage
	Namespace string // file in that namespace that pins the machine's namespace
	Root      string // root of the machine, in the machine's namespace
	Own       bool   // no other machine uses the root, see places.Secure
	Owner     uint32 // owner of the directories that are created in the root
}

// Args returns the command line that launches a command.
func (l Launch) Args(command []string) []string {
	return append([]string{l.Program, Argument, l.Keeper, l.Namespace, l.Root, strconv.FormatBool(l.Own), strconv.FormatUint(uint64(l.Owner), 10)}, command...)
}

const fixed = 7 // number of arguments before the command's

// Called reports whether the program's arguments ask it to launch a machine.
func Called(args []string) bool { return len(args) > fixed && args[1] == Argument }

// failed is the exit status of a failed launch, the same as that of systemd-nspawn.
const failed = 1

// Main launches the machine and never returns. It must be called before there are other
// goroutines.
func Main() {
	err := launch(os.Args)
	logError(err.Error())
	os.Exit(failed)
}

func launch(args []string) error {
	own, err := strconv.ParseBool(args[5])
	if err != nil {
		return fmt.Errorf("launch: parse %q: %w", args[5], err)
	}
	owner, err := strconv.ParseUint(args[6], 10, 32)
	if err != nil {
		return fmt.Errorf("launch: parse owner: %w", err)
	}
	runtime.LockOSThread()
	if err := enter(args[2], args[3]); err != nil {
		return fmt.Errorf("enter the mount namespace of the machine: %w", err)
	}
	root, err := unix.Open(args[4], unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open the root of the machine: %w", err)
	}
	if err := places.Secure(os.NewFile(uintptr(root), args[4]), own, int(owner)); err != nil {
		return err
	}
	command := args[fixed:]
	return fmt.Errorf("run %s: %w", command[0], unix.Exec(command[0], command, os.Environ()))
}

// enter moves this thread, which will execute the command, to the machine's namespace, by
// way of the keeper, in which the machine's is pinned.
//
// The keeper's own pin is opened through the root of PID 1. systemd gives a unit with
// NetworkNamespacePath= a mount namespace of its own (seen with 257), and a new mount
// namespace does not contain mounts that pin other namespaces (copy_mnt_ns in the
// kernel).
func enter(keeper, namespace string) error {
	if err := move("/proc/1/root" + keeper); err != nil {
		return err
	}
	return move(namespace)
}

func move(namespace string) error {
	file, err := unix.Open(namespace, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(file)
	for range 100 {
		if err = unix.Unshare(unix.CLONE_FS); err != nil {
			return err
		}
		// The runtime may have created a thread since Unshare that shares the file system
		// root with this one.
		if err = unix.Setns(file, unix.CLONE_NEWNS); !errors.Is(err, unix.EINVAL) {
			return err
		}
	}
	return err
}

// logError writes to the journal, with the identifier of systemd-nspawn, because its
// messages are looked for there. If that fails, only the exit status remains.
func logError(message string) {
	socket, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return
	}
	entry := "PRIORITY=3\nSYSLOG_IDENTIFIER=systemd-nspawn\nMESSAGE=" + oneLine(message) + "\n"
	_ = unix.Sendto(socket, []byte(entry), 0, &unix.SockaddrUnix{Name: "/run/systemd/journal/socket"})
}

func oneLine(text string) string {
	line := []byte(text)
	for i := range line {
		if line[i] == '\n' {
			line[i] = ' '
		}
	}
	return string(line)
}
