package guard

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"nomad-driver-nspawn/nspawn/filelock"
	"nomad-driver-nspawn/nspawn/mounts"
)

// ForbidLinks keeps every process on the host from following a symbolic link in a
// directory or below it, until the directory's owner has emptied it, as Nomad does with
// the directory of an allocation. Meanwhile, neither the directory nor its contents can be
// moved elsewhere.
//
// It mounts the directory on itself. A process that removes everything in the directory
// then cannot remove the directory itself. RemoveEmptied does that; it finds the directory
// by a link in records, a directory of the driver.
func ForbidLinks(records, dir string) error {
	return filelock.While(records, 0o700, func() error {
		record := filepath.Join(records, filepath.Base(dir))
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
func RemoveEmptied(records string) error {
	_, err := os.Stat(records)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return filelock.While(records, 0o700, func() error {
		paths, err := filepath.Glob(filepath.Join(records, "*"))
		errs := []error{err}
		for _, record := range paths {
			errs = append(errs, removeEmptied(record))
		}
		return errors.Join(errs...)
	})
}

func removeEmptied(record string) error {
	dir, err := os.Readlink(record)
	if err != nil {
		return nil // another process has removed it
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
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove %s, which has been emptied: %w", dir, err)
	}
	return os.Remove(record)
}
