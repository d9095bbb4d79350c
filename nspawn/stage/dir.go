package stage

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"nomad-driver-nspawn/nspawn/filelock"
	"nomad-driver-nspawn/nspawn/mounts"
)

const (
	// keeperName is the name of the file in the directory of pins that pins the keeper.
	keeperName = "keeper"
	// buildDir is the directory in there at which each stage is built.
	buildDir = "build"
)

// KeeperOf returns the file that pins the namespace in which the file pin is a mount
// point.
func KeeperOf(pin string) string { return filepath.Join(filepath.Dir(pin), keeperName) }

// PrepareDir prepares dir to hold files that pin namespaces, and programs. It makes dir a
// mount of its own, because /run may be mounted noexec. The mount is private, because the
// kernel never copies a mount that pins a namespace into another namespace. The
// preparation is done once in the host's life, under a lock of the parent directory.
func PrepareDir(dir string) error {
	err := filelock.While(filepath.Dir(dir), 0o755, func() error { return prepareDir(dir) })
	if err != nil {
		return fmt.Errorf("make a place for mount namespaces: %w", err)
	}
	return nil
}

func prepareDir(dir string) error {
	keeper := filepath.Join(dir, keeperName)
	if ready, err := mounts.IsPoint(keeper); err == nil && ready {
		return nil
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	mounted, err := mounts.IsPoint(dir)
	if err != nil {
		return err
	}
	if !mounted {
		if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0700"); err != nil {
			return fmt.Errorf("mount tmpfs at %s: %w", dir, err)
		}
	}
	if err := unix.Mount("", dir, "", unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mount %s private: %w", dir, err)
	}
	if err := os.MkdirAll(filepath.Join(dir, buildDir), 0o700); err != nil {
		return err
	}
	if err := os.WriteFile(keeper, nil, 0o600); err != nil {
		return err
	}
	if err := makeKeeper(dir, keeper); err != nil {
		return fmt.Errorf("make the namespace in which those of machines are pinned: %w", err)
	}
	return nil
}

// makeKeeper makes the keeper: a mount namespace whose root is the directory of pins, and
// that contains nothing else.
//
// The pins are mounted in the keeper and not on the host. systemd reads the list of all
// mounts of the host whenever it changes, so mounts on the host would delay systemd at
// each start and each removal. A stage begins as a copy of the keeper, so its cost does
// not depend on the number of mounts on the host.
//
// makeKeeper makes a candidate on each CPU and keeps the one with the lowest ID.
// Namespaces made later on any of these CPUs can then be mounted in it, see namespaceID.
func makeKeeper(dir, file string) error {
	cpus, err := ownCPUs()
	if err != nil {
		return err
	}
	var made []candidate
	for _, cpu := range cpus {
		c, err := newCandidate(cpu)
		if err != nil {
			return err
		}
		defer c.close()
		made = append(made, c)
	}
	slices.SortStableFunc(made, func(a, b candidate) int { return cmp.Compare(namespaceID(a.namespace), namespaceID(b.namespace)) })
	for _, c := range made {
		if err := c.thread.do(func() error { return moveTo(dir) }); err != nil {
			return err
		}
		// This comes last, when the keeper is complete: a mounted file counts as a keeper
		// that is ready. It fails with EINVAL if the ID of the host's own namespace is
		// higher, as the host may itself be a container; then the next one is tried.
		err = unix.Mount(fmt.Sprintf("/proc/self/fd/%d", c.namespace.Fd()), file, "", unix.MS_BIND, "")
		if !errors.Is(err, unix.EINVAL) {
			return err
		}
	}
	return err
}

// candidate is a mount namespace, with a thread in it, that may become the keeper.
type candidate struct {
	thread    *worker
	namespace *os.File
}

func newCandidate(cpu int) (c candidate, err error) {
	if c.thread, err = newWorker(); err != nil {
		return c, err
	}
	if err = c.thread.do(func() error { return unshareOn(cpu) }); err == nil {
		c.namespace, err = c.thread.namespace()
	}
	if err != nil {
		c.thread.end()
	}
	return c, err
}

func (c candidate) close() {
	c.namespace.Close()
	c.thread.end()
}

// moveTo makes a mount point the root of the mount namespace of this thread, and detaches
// everything else.
func moveTo(dir string) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("stop mount propagation: %w", err)
	}
	if err := unix.Chdir(dir); err != nil {
		return fmt.Errorf("enter %s: %w", dir, err)
	}
	return enterRoot()
}

// enterRoot makes the working directory, which must be a mount point, the root.
func enterRoot() error {
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("change root: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("leave the old root: %w", err)
	}
	return unix.Chdir("/")
}
