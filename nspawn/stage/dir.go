package stage

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"nomad-driver-nspawn/nspawn/mounts"
)

// PrepareDir makes dir a place for files that pin namespaces, and for programs to be
// run: a mount of its own, as /run may forbid programs, and a private one, as the
// kernel copies no mount that pins a namespace into another one.
func PrepareDir(dir string) error {
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
	return nil
}
