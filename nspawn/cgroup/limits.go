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

// Limits of the control groups below a machine's unit. Each group costs kernel memory and,
// with a memory controller, one of 65535 numbers of the whole host. A guest with
// containers of its own needs a few hundred.
const (
	MaxGroups = 1024
	MaxDepth  = 16
)

// Limit limits the control groups of a machine, for which systemd has no setting. The
// files are in the unit's own group, which the container cannot write to. It is not an
// error if the machine has ended.
func Limit(name string) error {
	for file, value := range map[string]int{"cgroup.max.descendants": MaxGroups, "cgroup.max.depth": MaxDepth} {
		err := os.WriteFile(filepath.Join(OfUnit(name), file), []byte(strconv.Itoa(value)), 0)
		if err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, unix.ENODEV) {
			return fmt.Errorf("limit control groups: %w", err)
		}
	}
	return nil
}

// ShowLimits copies limits of the machine's unit to the group that its container sees as
// the root of all groups. Programs that size themselves, such as a JVM, look there. The
// container cannot write to these files, and the unit's limits apply in any case.
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
