package rootfs

import (
	"fmt"

	"golang.org/x/sys/unix"

	"nomad-driver-nspawn/nspawn/thread"
)

// withPrivateMounts runs work on a thread with a mount namespace of its own. The
// namespace is a copy of the host's: changes on the host appear in it, but its own
// changes do not appear on the host. The namespace ends with the thread; file descriptors
// that work opens remain.
func withPrivateMounts(work func() error) error {
	return thread.Run(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
			return fmt.Errorf("make private mount namespace: %w", err)
		}
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
			return fmt.Errorf("stop mount propagation to the host: %w", err)
		}
		return work()
	})
}
