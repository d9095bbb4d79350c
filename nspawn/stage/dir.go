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
	// keeperName is the file that pins the keeper, in the directory of pins.
	keeperName = "keeper"
	// buildDir is the directory there at which each stage is built.
	buildDir = "build"
)

// KeeperOf returns the file that pins the namespace in which a pin is mounted.
func KeeperOf(pin string) string { return filepath.Join(filepath.Dir(pin), keeperName) }

// PrepareDir makes dir a place for files that pin namespaces, and for programs to be
// run: a mount of its own, as /run may forbid programs, and a private one, as the
// kernel copies no mount that pins a namespace into another one. It is done once in the
// host's life, under a lock of the directory above.
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
		return fmt.Errorf("make the namespace that keeps those of machines: %w", err)
	}
	return nil
}

// makeKeeper makes the keeper: a mount namespace that has the directory of pins as its
// root, and nothing else.
//
// The pins are mounted there and not on the host, because systemd reads the list of all
// mounts of the host whenever it changes: at each start and each removal, before it
// does anything else. A stage begins as a copy of the keeper, so it costs the same
// however much is mounted on the host.
//
// The keeper is the one of the lowest number of those made on each CPU: what is made on
// any of them later can be mounted there, see numberOf.
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
	slices.SortStableFunc(made, func(a, b candidate) int { return cmp.Compare(numberOf(a.namespace), numberOf(b.namespace)) })
	for _, c := range made {
		if err := c.thread.do(func() error { return moveTo(dir) }); err != nil {
			return err
		}
		// Last, when it is complete: a file that pins it is taken for one that does.
		// The host's own number may be higher: it may be a container.
		err = unix.Mount(fmt.Sprintf("/proc/self/fd/%d", c.namespace.Fd()), file, "", unix.MS_BIND, "")
		if !errors.Is(err, unix.EINVAL) {
			return err
		}
	}
	return err
}

// candidate is a mount namespace, with a thread in it, that may become the keeper.
type candidate struct {
	thread    *thread
	namespace *os.File
}

func newCandidate(cpu int) (c candidate, err error) {
	if c.thread, err = newThread(); err != nil {
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

// moveTo makes a mount point the root of the namespace that this thread is in, with
// nothing else.
func moveTo(dir string) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("stop mount propagation: %w", err)
	}
	if err := unix.Chdir(dir); err != nil {
		return fmt.Errorf("enter %s: %w", dir, err)
	}
	return enterRoot()
}

// enterRoot makes the working directory, which is a mount point, the root.
func enterRoot() error {
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("change root: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("leave the old root: %w", err)
	}
	return unix.Chdir("/")
}
