package rootfs

import (
	"fmt"
	"os"
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

// userNamespace returns a user namespace that serves as the map of ID-mapped
// mounts: UIDs and GIDs 0 to 65535 on disk appear as base and following. Host
// root appears too, as 65536 on disk, because overlayfs (in its work directory)
// and systemd-nspawn (making mount points) create files as host root, which
// fails with EOVERFLOW where root has no mapping.
func userNamespace(base uint32) (*os.File, error) {
	holder, err := newZombie()
	if err != nil {
		return nil, fmt.Errorf("make user namespace: %w", err)
	}
	defer holder.bury()
	proc := fmt.Sprintf("/proc/%d/", holder)
	ids := fmt.Appendf(nil, "0 %d %d\n%d 0 1\n", base, RangeSize, RangeSize)
	for _, file := range []string{"uid_map", "gid_map"} {
		if err := os.WriteFile(proc+file, ids, 0); err != nil {
			return nil, fmt.Errorf("map user namespace %d: %w", base, err)
		}
	}
	namespace, err := os.Open(proc + "ns/user")
	if err != nil {
		return nil, fmt.Errorf("open user namespace %d: %w", base, err)
	}
	return namespace, nil
}
