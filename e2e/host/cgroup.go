package host

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// cgroupRoot is the mount point of the v2 hierarchy: /sys/fs/cgroup itself, or a directory
// in it on a hybrid machine, where the controllers stay with v1.
func cgroupRoot() string {
	var st unix.Statfs_t
	if unix.Statfs("/sys/fs/cgroup", &st) == nil && st.Type == unix.CGROUP2_SUPER_MAGIC {
		return "/sys/fs/cgroup"
	}
	return "/sys/fs/cgroup/unified"
}

// cgroup is the root of the host's own hierarchy.
func (r *record) cgroup() string {
	return filepath.Join(cgroupRoot(), "disposable-host-"+r.Name)
}

// execCgroup holds the commands entered from outside. They have a cgroup of
// their own because systemd enables controllers on the host's root cgroup,
// and such a cgroup takes no processes (cgroups(7), "no internal processes").
func execCgroup(cgroup string) string { return filepath.Join(cgroup, "exec") }

func makeCgroup(cgroup string) error {
	enableControllers(filepath.Dir(cgroup))
	if err := os.MkdirAll(execCgroup(cgroup), 0o755); err != nil {
		return fmt.Errorf("create cgroup: %w", err)
	}
	return nil
}

// enableControllers gives the host the controllers that units use, as far as they are
// available. Each is enabled separately, so that one that is refused does not affect the
// others.
func enableControllers(parent string) {
	for _, controller := range []string{"cpu", "cpuset", "io", "memory", "pids"} {
		_ = os.WriteFile(filepath.Join(parent, "cgroup.subtree_control"), []byte("+"+controller), 0)
	}
}

// joinCgroup moves the calling process to a cgroup.
func joinCgroup(cgroup string) error {
	err := os.WriteFile(filepath.Join(cgroup, "cgroup.procs"), []byte(strconv.Itoa(os.Getpid())), 0)
	if err != nil {
		return fmt.Errorf("join cgroup: %w", err)
	}
	return nil
}

// killCgroup kills every process below cgroup (cgroup.kill, Linux 5.14) and
// returns when the last one is gone.
func killCgroup(cgroup string) error {
	err := os.WriteFile(filepath.Join(cgroup, "cgroup.kill"), []byte("1"), 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("kill cgroup: %w", err)
	}
	return waitEmpty(filepath.Join(cgroup, "cgroup.events"), 20*time.Second)
}

// waitEmpty waits for "populated 0". The kernel announces a change of the file
// with POLLPRI; reading it from the start arms the next announcement.
func waitEmpty(events string, patience time.Duration) error {
	f, err := os.Open(events)
	if err != nil {
		return fmt.Errorf("watch cgroup: %w", err)
	}
	defer f.Close()
	deadline := time.Now().Add(patience)
	buf := make([]byte, 256)
	for {
		n, err := f.ReadAt(buf, 0)
		if n == 0 {
			return fmt.Errorf("watch cgroup: %w", err)
		}
		if bytes.Contains(buf[:n], []byte("populated 0")) {
			return nil
		}
		left := time.Until(deadline)
		if left <= 0 {
			return fmt.Errorf("processes in %s survive SIGKILL for %s", filepath.Dir(events), patience)
		}
		fds := []unix.PollFd{{Fd: int32(f.Fd()), Events: unix.POLLPRI}}
		if _, err := unix.Poll(fds, int(left.Milliseconds())+1); err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("watch cgroup: %w", err)
		}
	}
}

// removeCgroup removes the subtree from the leaves up.
func removeCgroup(cgroup string) error {
	entries, err := os.ReadDir(cgroup)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read cgroup: %w", err)
	}
	for _, entry := range entries {
		if entry.IsDir() {
			if err := removeCgroup(filepath.Join(cgroup, entry.Name())); err != nil {
				return err
			}
		}
	}
	if err := unix.Rmdir(cgroup); err != nil {
		return fmt.Errorf("remove cgroup %s: %w", cgroup, err)
	}
	return nil
}
