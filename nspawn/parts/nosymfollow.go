package parts

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"

	"nomad-driver-nspawn/nspawn/mounts"
)

// makeNoSymfollow keeps the host's root from following symbolic links in the directories
// of the allocation that the machine sees. Nomad checks where a path leads and then opens
// it, and in between a machine could replace a directory by a link. Package guard explains
// the ways in which Nomad is protected.
func (m *Maker) makeNoSymfollow(_ context.Context, d *draft) error {
	lock, err := m.lockNoSymfollow()
	if err != nil {
		return err
	}
	defer lock.Close()
	for i, bind := range d.spec.Binds {
		if !bind.NoSymfollow {
			continue
		}
		if err := m.makeNoSymfollowOne(d, bind.Source, strconv.Itoa(i)); err != nil {
			return err
		}
	}
	return nil
}

func (m *Maker) makeNoSymfollowOne(d *draft, path, name string) error {
	dir, err := d.open(path)
	if err != nil {
		return err
	}
	defer dir.Close()
	isPoint, err := mounts.IsPoint(path)
	if err != nil {
		return err
	}
	users := m.dirs.NoSymfollowUsers(path)
	if _, err := os.Stat(users); isPoint && errors.Is(err, fs.ErrNotExist) {
		return mounts.ForbidLinks(dir) // whoever mounted it unmounts it
	}
	records := m.dirs.NoSymfollowDirs(d.spec.Machine)
	for _, dir := range []string{records, users} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return fmt.Errorf("record the mount of %s: %w", path, err)
		}
	}
	for _, link := range []string{filepath.Join(records, name), filepath.Join(users, d.spec.Machine)} {
		if err := os.Symlink(path, link); err != nil {
			return fmt.Errorf("record the mount of %s: %w", path, err)
		}
	}
	return mounts.ForbidLinks(dir)
}

// removeNoSymfollow removes the mounts that no other machine needs. After that, Nomad can
// move what is in them.
func (m *Maker) removeNoSymfollow(_ context.Context, name string) error {
	records, _ := filepath.Glob(filepath.Join(m.dirs.NoSymfollowDirs(name), "*")) // the pattern is well-formed
	if len(records) == 0 {
		return nil
	}
	lock, err := m.lockNoSymfollow()
	if err != nil {
		return err
	}
	defer lock.Close()
	for _, record := range slices.Backward(records) { // the deepest first
		path, err := os.Readlink(record)
		if err != nil {
			return fmt.Errorf("read which directory machine %s has mounted: %w", name, err)
		}
		if err := m.leaveNoSymfollow(path, name); err != nil {
			return err
		}
		if err := os.Remove(record); err != nil {
			return err
		}
	}
	return nil
}

// leaveNoSymfollow unmounts a directory if this was its last machine.
func (m *Maker) leaveNoSymfollow(path, name string) error {
	users := m.dirs.NoSymfollowUsers(path)
	if err := ignoreNotExist(os.Remove(filepath.Join(users, name))); err != nil {
		return err
	}
	err := os.Remove(users)
	if errors.Is(err, unix.ENOTEMPTY) {
		return nil
	}
	if ignoreNotExist(err) != nil {
		return err
	}
	if err := mounts.Unmount(path); err != nil {
		return err
	}
	removeAlone(path)
	return nil
}

// removeAlone removes an empty directory and its parent if the parent contains nothing
// else: Nomad has then removed the allocation, except for what was mounted. In an
// allocation in use, the parent contains more.
func removeAlone(dir string) {
	above := filepath.Dir(dir)
	if beside, err := os.ReadDir(above); err != nil || len(beside) != 1 {
		return
	}
	if unix.Rmdir(dir) == nil {
		_ = unix.Rmdir(above)
	}
}

func (m *Maker) lockNoSymfollow() (*os.File, error) { return m.locks.Lock("/unlinked") } // no machine has this name
