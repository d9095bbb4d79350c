package cgroup

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// Bounds of the control groups below a machine's unit. Each costs kernel memory and,
// with a memory controller, one of 65535 numbers of the whole host. A guest with
// containers of its own needs a few hundred.
const (
	MaxGroups = 1024
	MaxDepth  = 16
)

// Limit bounds the control groups of a machine. systemd has no setting for it.
// The files are in the unit's own group, which the container cannot write to. It is
// not an error if the machine has ended.
func Limit(name string) error {
	for file, value := range map[string]int{"cgroup.max.descendants": MaxGroups, "cgroup.max.depth": MaxDepth} {
		err := os.WriteFile(filepath.Join(OfUnit(name), file), []byte(strconv.Itoa(value)), 0)
		if err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, unix.ENODEV) {
			return fmt.Errorf("limit control groups: %w", err)
		}
	}
	return nil
}

// ShowLimits repeats limits of the machine's unit in the group that its container takes
// for the root of all. Programs that size themselves, as a JVM does, look there. The
// container cannot write to these files, and the unit's limits hold anyway.
func ShowLimits(name string) error {
	for _, file := range []string{"memory.max", "memory.swap.max", "cpu.max", "pids.max"} {
		value, err := os.ReadFile(filepath.Join(OfUnit(name), file))
		if errors.Is(err, os.ErrNotExist) || bytes.HasPrefix(value, []byte("max")) {
			continue // no controller, or no limit
		}
		if err == nil {
			err = os.WriteFile(filepath.Join(OfPayload(name), file), value, 0)
		}
		if err != nil {
			return fmt.Errorf("show limits to the machine: %w", err)
		}
	}
	return nil
}
