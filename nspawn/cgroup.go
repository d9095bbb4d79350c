package nspawn

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// Bounds of the control groups below a machine's unit. Each costs kernel memory and,
// with a memory controller, one of 65535 numbers of the whole host. A guest with
// containers of its own needs a few hundred.
const (
	maxGroups     = 1024
	maxGroupDepth = 16
)

// limitGroups bounds the control groups of a machine. systemd has no setting for it.
// The files are in the unit's own group, which the container cannot write to. It is
// not an error if the machine has ended.
func limitGroups(group string) error {
	for name, value := range map[string]int{"cgroup.max.descendants": maxGroups, "cgroup.max.depth": maxGroupDepth} {
		err := os.WriteFile(filepath.Join(group, name), []byte(strconv.Itoa(value)), 0)
		if err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, unix.ENODEV) {
			return fmt.Errorf("limit control groups: %w", err)
		}
	}
	return nil
}

// showLimits repeats limits of the machine's unit in the group that its container takes
// for the root of all. Programs that size themselves, as a JVM does, look there. The
// container cannot write to these files, and the unit's limits hold anyway.
func showLimits(machine string) error {
	for _, name := range []string{"memory.max", "memory.swap.max", "cpu.max", "pids.max"} {
		value, err := os.ReadFile(filepath.Join(unitGroup(machine), name))
		if errors.Is(err, os.ErrNotExist) || bytes.HasPrefix(value, []byte("max")) {
			continue // no controller, or no limit
		}
		if err == nil {
			err = os.WriteFile(filepath.Join(payloadGroup(machine), name), value, 0)
		}
		if err != nil {
			return fmt.Errorf("show limits to the machine: %w", err)
		}
	}
	return nil
}

// removeGroup removes a control group and those below. systemd has done so unless
// their paths are longer than it can handle.
//
// No path is used but the first: it goes down and up by descriptors, and holds one
// at a time, as the groups may be nested to any depth.
func removeGroup(path string) error {
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
	return ignoreNotExist(os.Remove(path))
}

// firstGroup is the name of one of the groups directly in a group, "" if there is none.
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
