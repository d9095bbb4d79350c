// Command vm runs tests in a small virtual machine, for what disposable hosts
// (see the package nomad-driver-nspawn/e2e/host) cannot have: cgroup
// controllers, swap, and a kernel of its own, by default Debian 12's 6.1.
//
// The machine has the root and the guest images of the disposable hosts on a
// disk image, which is cached beside theirs and never written to. Tests that
// begin with vmtest.Require run in it and nowhere else. The machine is gone
// when the command is, however that ends, and so is it when the command's
// caller ends.
//
// It needs root and QEMU, which apt-get fetches when it is missing. QEMU
// emulates the processor: /dev/kvm is no promise that a stock kernel boots.
// Where it does, NSPAWN_VM_ACCEL=kvm is much faster.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

const usage = `usage: vm test [--suite SUITE] [--run REGEXP] [--deadline DURATION] PKG...

Runs the tests of packages that match REGEXP (^TestVM) in a virtual machine
with the root and kernel of SUITE (bookworm). The exit status is 0 if all of
them passed and none was skipped, within DURATION from the machine's start.
`

// init keeps main on the main thread. A child gets its parent-death signal when the thread
// that started it ends (PR_SET_PDEATHSIG(2const)), and only the main thread lasts as long
// as the process.
func init() { runtime.LockOSThread() }

func main() {
	signal.Ignore(syscall.SIGPIPE) // a write to a closed stdout is an error, not the end
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	if len(os.Args) < 2 || os.Args[1] != "test" {
		fmt.Fprint(os.Stderr, usage)
		os.Exit(2)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	err := watchCaller(cancel)
	if err == nil {
		err = test(ctx, os.Args[2:])
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "vm:", err)
		os.Exit(1)
	}
}

// watchCaller cancels when the calling process ends. Under go run, that is the go command,
// which passes on SIGINT and SIGTERM but not its own death.
func watchCaller(cancel context.CancelCauseFunc) error {
	caller := os.Getppid()
	pidfd, err := unix.PidfdOpen(caller, 0)
	if err != nil || os.Getppid() != caller {
		return fmt.Errorf("watch the calling process %d: it has ended or cannot be seen: %w", caller, err)
	}
	go func() {
		for {
			_, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, -1)
			if !errors.Is(err, unix.EINTR) {
				cancel(errors.New("the calling process has ended"))
				return
			}
		}
	}()
	return nil
}

// test runs tests of packages in a fresh virtual machine.
func test(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("test", flag.ExitOnError)
	flags.Usage = func() { fmt.Fprint(os.Stderr, usage) }
	match := flags.String("run", "^TestVM", "run the tests that match `regexp`")
	suite := flags.String("suite", "bookworm", "the Debian `release` of root and kernel")
	deadline := flags.Duration("deadline", 0, "how long the machine may run; 0 is what is enough for any tests")
	_ = flags.Parse(args) // exits on error
	if flags.NArg() == 0 {
		return errors.New("test: want packages, after the flags")
	}
	work, err := newWork()
	if err != nil {
		return err
	}
	defer work.remove()
	packages, err := buildTests(ctx, work.path("tests"), flags.Args())
	if err != nil {
		return err
	}
	if err := writeScript(work.path("tests"), packages, *match); err != nil {
		return err
	}
	if err := need(ctx, tools); err != nil {
		return err
	}
	system, err := makeSystem(ctx, *suite)
	if err != nil {
		return err
	}
	if err := makeDisk(ctx, work.path("tests"), work.path("tests.ext4")); err != nil {
		return err
	}
	return runTests(ctx, system, work, packages, *deadline)
}

func progress(format string, args ...any) {
	fmt.Fprintf(os.Stderr, format+"\n", args...)
}
