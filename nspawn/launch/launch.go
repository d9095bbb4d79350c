// Package launch is what a machine's unit runs at each start and at each reboot of the
// guest: it enters the machine's mount namespace, makes sure of the places in the root
// that systemd-nspawn writes to, and becomes systemd-nspawn.
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

// Argument is the first one of the program that is to do this.
const Argument = "launch"

// Launch says how a machine is started.
type Launch struct {
	Program   string // that handles Argument
	Keeper    string // file that pins the mount namespace of pins, see package stage
	Namespace string // file there that pins the machine's
	Root      string // of the machine, in that
	Own       bool   // the root is only this machine's, see places.Secure
	Owner     uint32 // of what is made in it
}

// Args is the command line that launches a command.
func (l Launch) Args(command []string) []string {
	return append([]string{l.Program, Argument, l.Keeper, l.Namespace, l.Root, strconv.FormatBool(l.Own), strconv.FormatUint(uint64(l.Owner), 10)}, command...)
}

const fixed = 7 // arguments before those of the command

// Called reports whether the program was started to launch a machine.
func Called(args []string) bool { return len(args) > fixed && args[1] == Argument }

// failed is the exit status of systemd-nspawn when it fails, too.
const failed = 1

// Main never returns. It has to be called before there are other goroutines.
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

// enter moves this thread, which the command will be run from, to the namespace that is
// pinned in the keeper.
//
// The keeper's pin is looked up as PID 1 sees it. systemd gives a unit with
// NetworkNamespacePath= a mount namespace of its own (seen with 257), and a new mount
// namespace has no mounts that pin others (copy_mnt_ns in the kernel).
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
		// The runtime may have made a thread in between that shares the file
		// system's root with this one.
		if err = unix.Setns(file, unix.CLONE_NEWNS); !errors.Is(err, unix.EINVAL) {
			return err
		}
	}
	return err
}

// logError writes to the journal, where the messages of systemd-nspawn are looked
// for. What it cannot tell, the exit status does.
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
