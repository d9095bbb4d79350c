// Package cgroup finds the control groups of a machine: the group of its unit, which
// systemd makes, and the group below it that the container sees as the root of all groups.
// It limits them, reads their usage, and removes those that systemd leaves behind.
package cgroup

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"nomad-driver-nspawn/nspawn/machine"
)

// Root is the mount point of the unified hierarchy.
const Root = "/sys/fs/cgroup"

// Of returns the absolute directory of the control group of a process.
func Of(pid int) (string, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		return "", fmt.Errorf("read cgroup of process %d: %w", pid, err)
	}
	path, ok := unified(string(text))
	if !ok {
		return "", fmt.Errorf("read cgroup of process %d: no cgroup v2 entry", pid)
	}
	return filepath.Join(Root, path), nil
}

// unified returns the path in the unified hierarchy from /proc/PID/cgroup (cgroups(7)). A
// container names groups as it likes, with spaces too, but not with a line feed.
func unified(text string) (path string, ok bool) {
	for line := range strings.Lines(text) {
		if path, ok := strings.CutPrefix(line, "0::"); ok {
			return strings.TrimSuffix(path, "\n"), true
		}
	}
	return "", false
}

// OfUnit returns the directory of the control group of a machine's unit. It is derived
// from the names, because asking systemd takes milliseconds.
func OfUnit(name string) string {
	slice := filepath.Join(Root, "machine.slice", machine.Slice)
	shared := filepath.Join(slice, machine.ShareSlice, machine.UnitName(name))
	if _, err := os.Stat(shared); err == nil {
		return shared
	}
	return filepath.Join(slice, machine.UnitName(name))
}

// OfPayload returns the group below OfUnit that nspawn gives to the container.
func OfPayload(name string) string { return filepath.Join(OfUnit(name), "payload") }

// Controllers lists the cgroup controllers of the unified hierarchy.
func Controllers() ([]string, error) {
	var fs unix.Statfs_t
	if err := unix.Statfs(Root, &fs); err != nil {
		return nil, fmt.Errorf("inspect %s: %w", Root, err)
	}
	if fs.Type != unix.CGROUP2_SUPER_MAGIC {
		return nil, fmt.Errorf("%s is not cgroup v2: boot with systemd.unified_cgroup_hierarchy=1", Root)
	}
	text, err := os.ReadFile(Root + "/cgroup.controllers")
	if err != nil {
		return nil, fmt.Errorf("read cgroup controllers: %w", err)
	}
	return strings.Fields(string(text)), nil
}
