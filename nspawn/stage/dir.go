package stage

import (
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

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
// kernel copies no mount that pins a namespace into another one. Nobody else may do so
// at the same time.
func PrepareDir(dir string) error {
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
func makeKeeper(dir, file string) error {
	return onAnyCPU(func(cpu int) error {
		t := newThread()
		defer t.end()
		err := t.do(func() error {
			if err := unshare(cpu); err != nil {
				return err
			}
			return moveTo(dir)
		})
		if err != nil {
			return err
		}
		// Last, when it is complete: a file that pins it is taken for one that does.
		return unix.Mount(t.namespace(), file, "", unix.MS_BIND, "")
	})
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
