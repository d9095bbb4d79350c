package rootfs

import (
	"fmt"
	"runtime"

	"golang.org/x/sys/unix"
)

// withPrivateMounts runs work on a thread with a mount namespace of its own: a
// copy of the host's that follows its changes and gives none back. The thread
// ends with it; what work returns by file descriptor stays.
func withPrivateMounts(work func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		// Go never ends the main thread, and /proc/self shows its namespaces:
		// hold it while another thread does the work.
		if unix.Gettid() == unix.Getpid() {
			done <- withPrivateMounts(work)
			runtime.UnlockOSThread()
			return
		}
		done <- func() error {
			if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
				return fmt.Errorf("make private mount namespace: %w", err)
			}
			if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
				return fmt.Errorf("stop mount propagation to the host: %w", err)
			}
			return work()
		}() // Still locked: the thread is thrown away.
	}()
	return <-done
}
