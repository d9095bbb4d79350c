package nspawn

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"nomad-driver-nspawn/nspawn/filelock"
	"nomad-driver-nspawn/nspawn/mounts"
)

// ForbidLinks has nobody on the host follow a symbolic link in a directory, or below it,
// until whoever owns it has emptied it, as Nomad does with that of an allocation. From
// there on it cannot be moved elsewhere, nor what is in it.
//
// It mounts the directory on itself. Who then removes all that is in it cannot remove
// the directory itself: RemoveEmptied does.
func (m *Manager) ForbidLinks(dir string) error {
	return filelock.While(m.dirs.Unlinked(), 0o700, func() error {
		record := filepath.Join(m.dirs.Unlinked(), filepath.Base(dir))
		if err := os.Symlink(dir, record); err != nil && !errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("record the mount of %s: %w", dir, err)
		}
		file, err := mounts.Open(dir, "")
		if err != nil {
			return err
		}
		defer file.Close()
		return mounts.ForbidLinks(file)
	})
}

// RemoveEmptied removes the directories of ForbidLinks that are empty.
func (m *Manager) RemoveEmptied() error {
	if _, err := os.Stat(m.dirs.Unlinked()); err != nil {
		return ignoreNotExist(err)
	}
	return filelock.While(m.dirs.Unlinked(), 0o700, func() error {
		records, err := filepath.Glob(filepath.Join(m.dirs.Unlinked(), "*"))
		errs := []error{err}
		for _, record := range records {
			errs = append(errs, removeEmptied(record))
		}
		return errors.Join(errs...)
	})
}

func removeEmptied(record string) error {
	dir, err := os.Readlink(record)
	if err != nil {
		return nil // somebody else has removed it
	}
	entries, err := os.ReadDir(dir)
	if err == nil && len(entries) > 0 {
		return nil
	}
	if err == nil {
		if err := mounts.Unmount(dir); err != nil {
			return err
		}
		err = os.Remove(dir)
	}
	if ignoreNotExist(err) != nil {
		return fmt.Errorf("remove %s, which has been emptied: %w", dir, err)
	}
	return os.Remove(record)
}
