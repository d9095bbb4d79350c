package parts

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"nomad-driver-nspawn/nspawn/gate"
	"nomad-driver-nspawn/nspawn/mounts"
	"nomad-driver-nspawn/nspawn/tree"
)

// makeDirectory creates the machine's own directory, with its gate.
func (m *Maker) makeDirectory(_ context.Context, d *draft) error {
	name := d.spec.Machine
	for _, dir := range []string{m.dirs.Machine(name), m.dirs.Mounts(name)} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return fmt.Errorf("make the directory of machine %s: %w", name, err)
		}
	}
	return gate.Make(m.dirs.Gate(name))
}

func (m *Maker) directoryOwners() ([]string, error) { return namesOf(m.dirs.Machine("*")) }

// namesOf returns the base names of the paths that match a well-formed pattern.
func namesOf(pattern string) (names []string, err error) {
	paths, err := filepath.Glob(pattern)
	for _, path := range paths {
		names = append(names, filepath.Base(path))
	}
	return names, err
}

// removeDirectory removes the machine's own directory. Earlier versions of the driver had
// mounts in it, which the host's systemd sees, and directories of nspawn's own.
func (m *Maker) removeDirectory(_ context.Context, name string) error {
	dir := m.dirs.Machine(name)
	if _, err := os.Lstat(dir); errors.Is(err, os.ErrNotExist) {
		return removeEmpty(name) // usual before a start; saves reading the list of mounts, which may be long
	}
	below, err := mounts.Below(dir)
	if err != nil {
		return err
	}
	for _, mount := range slices.Backward(below) {
		if err := mounts.Unmount(filepath.Join(dir, mount.Path)); err != nil {
			return err
		}
	}
	if err := removeEmpty(name); err != nil {
		return err
	}
	return tree.Remove(dir)
}

// removeEmpty removes the directories below /run/systemd/nspawn that remain if an nspawn
// is killed that an earlier version of the driver started. Outside the unit's mount
// namespace they are empty. Units started before an upgrade from systemd 255 have no mount
// namespace of their own, hence the unmount.
func removeEmpty(name string) error {
	var errs []error
	_ = unix.Unmount("/run/systemd/nspawn/unix-export/"+name, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW) // hardly ever mounted
	for _, dir := range []string{"propagate/" + name, "unix-export/" + name, name + "/unix-export", name} {
		errs = append(errs, ignoreNotExist(os.Remove("/run/systemd/nspawn/"+dir)))
	}
	return errors.Join(errs...)
}

func ignoreNotExist(err error) error {
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}
