package cgroup

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// Remove removes a control group and those below it. systemd does so itself, unless their
// paths are too long for it.
//
// The groups may be nested to any depth. So Remove uses no path but the first: it walks by
// descriptors, and holds one at a time.
func Remove(path string) error {
	dir, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("remove control group: %w", err)
	}
	defer func() { dir.Close() }()
	for names := []string(nil); ; {
		name, err := firstGroup(dir)
		if err != nil {
			return fmt.Errorf("remove control groups in %s: %w", path, err)
		}
		up := name == ""
		if up && len(names) == 0 {
			break
		}
		next := name
		if up {
			next = ".."
		}
		fd, err := unix.Openat(int(dir.Fd()), next, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("remove control groups in %s: open %s: %w", path, next, err)
		}
		dir.Close()
		dir = os.NewFile(uintptr(fd), next)
		if !up {
			names = append(names, name)
			continue
		}
		last := names[len(names)-1]
		names = names[:len(names)-1]
		if err := unix.Unlinkat(fd, last, unix.AT_REMOVEDIR); err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("remove control groups in %s: remove %s: %w", path, last, err)
		}
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// firstGroup returns the name of a group directly in a group, or "" if there is none.
func firstGroup(dir *os.File) (string, error) {
	for {
		entries, err := dir.ReadDir(128)
		for _, entry := range entries {
			if entry.IsDir() {
				return entry.Name(), nil
			}
		}
		if errors.Is(err, io.EOF) {
			return "", nil
		}
		if err != nil {
			return "", err
		}
	}
}
