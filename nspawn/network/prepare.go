package network

import (
	"fmt"
	"os"
	"runtime"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Prepare makes the network namespace at path fit for a machine with a user
// namespace that does not own it: it brings up lo, which Nomad's network mode
// "none" leaves down, and lets everybody bind to ports below 1024, for which
// the machine's root has no capability there (CAP_NET_BIND_SERVICE counts in
// the user namespace that owns the network's, capabilities(7)). Nobody else
// uses the namespace but the tasks of its allocation.
func Prepare(path string) error {
	err := within(path, func() error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return fmt.Errorf("find lo: %w", err)
		}
		if err := netlink.LinkSetUp(lo); err != nil {
			return fmt.Errorf("bring up lo: %w", err)
		}
		// Files below /proc/sys/net show the namespace of the thread that opens
		// them.
		const lowest = "/proc/sys/net/ipv4/ip_unprivileged_port_start"
		if err := os.WriteFile(lowest, []byte("0"), 0o644); err != nil {
			return fmt.Errorf("allow ports below 1024: %w", err)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("prepare network: %w", err)
	}
	return nil
}

// within runs work on a thread in the network namespace at path. The thread is
// not used again.
func within(path string, work func() error) error {
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		// Go never ends the main thread, and /proc/self shows its namespaces:
		// hold it while another thread does the work.
		if unix.Gettid() == unix.Getpid() {
			result <- within(path, work)
			runtime.UnlockOSThread()
			return
		}
		result <- func() error {
			fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
			if err != nil {
				return fmt.Errorf("open network namespace %s: %w", path, err)
			}
			defer unix.Close(fd)
			if err := unix.Setns(fd, unix.CLONE_NEWNET); err != nil {
				return fmt.Errorf("join network namespace %s: %w", path, err)
			}
			return work()
		}() // Still locked: the runtime ends the thread with the goroutine.
	}()
	return <-result
}
