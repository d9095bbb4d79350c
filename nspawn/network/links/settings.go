package links

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"nomad-driver-nspawn/nspawn/thread"
)

// Settings prepares a network namespace for a container. All users in it may bind to
// ports below 1024 and use ping, as in docker; capabilities of a user namespace that does
// not own the network namespace would not permit that (capabilities(7)). Settings also
// brings up lo, which Nomad's network mode "none" leaves down.
//
// In a group's network, the first task is the only one for which anything is set: a job may
// have set it otherwise since (option sysctl).
func Settings(namespace *os.File) error {
	err := within(namespace, func() error {
		// Files below /proc/sys/net belong to the namespace of the thread that opens
		// them.
		const ping, unset = "/proc/sys/net/ipv4/ping_group_range", "1\t0\n"
		if now, err := os.ReadFile(ping); err != nil || string(now) != unset {
			return err
		}
		for _, setting := range []struct{ path, value string }{
			{"/proc/sys/net/ipv4/ip_unprivileged_port_start", "0"},
			{ping, "0 2147483647"}, // last: it shows that both are set
		} {
			if err := os.WriteFile(setting.path, []byte(setting.value), 0o644); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("set up network namespace for ports and ping: %w", err)
	}
	container, err := openContainer(namespace)
	if err != nil {
		return err
	}
	defer container.Close()
	lo, err := container.end("lo")
	if err != nil {
		return err
	}
	return lo.up()
}

// within runs work on a thread in a network namespace.
func within(namespace *os.File, work func() error) error {
	return thread.Run(func() error {
		if err := unix.Setns(int(namespace.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("join network namespace %s: %w", namespace.Name(), err)
		}
		return work()
	})
}
