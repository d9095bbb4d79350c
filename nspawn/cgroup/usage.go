package cgroup

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Usage is what a machine uses at one instant, including nspawn itself. A value is nil if
// this host does not report it, because its controller is not enabled or its kernel is too
// old.
type Usage struct {
	Time time.Time

	CPUUser, CPUSystem time.Duration // since the start
	ThrottledPeriods   *uint64
	ThrottledTime      *time.Duration

	Memory Memory
}

// Memory is in bytes.
type Memory struct {
	Current *uint64 // memory.current
	Peak    *uint64 // memory.peak, kernel 5.19
	RSS     *uint64 // memory.stat anon; without a memory controller, the sum of all processes
	Cache   *uint64 // memory.stat file
	Kernel  *uint64 // memory.stat kernel, kernel 5.18
	Swap    *uint64 // memory.swap.current
}

// ReadUsage reads the usage from the control group of the machine's unit.
func ReadUsage(name string) (Usage, error) {
	return readUsage(os.DirFS(OfUnit(name)), anonymousMemory)
}

// readUsage reads the files of a control group (cgroup-v2.rst). memory returns the memory
// of a process; it is used if the group has no memory files.
func readUsage(group fs.FS, memory func(pid int) uint64) (Usage, error) {
	cpu, err := readFlat(group, "cpu.stat")
	if err != nil {
		return Usage{}, err
	}
	usage := Usage{
		Time:      time.Now(),
		CPUUser:   time.Duration(cpu["user_usec"]) * time.Microsecond,
		CPUSystem: time.Duration(cpu["system_usec"]) * time.Microsecond,
	}
	if periods, ok := cpu["nr_throttled"]; ok { // only with the cpu controller
		throttled := time.Duration(cpu["throttled_usec"]) * time.Microsecond
		usage.ThrottledPeriods, usage.ThrottledTime = &periods, &throttled
	}
	usage.Memory, err = readMemory(group, memory)
	return usage, err
}

func readMemory(group fs.FS, processMemory func(pid int) uint64) (Memory, error) {
	stat, err := readFlat(group, "memory.stat")
	if errors.Is(err, fs.ErrNotExist) {
		rss, err := sumProcesses(group, processMemory)
		if errors.Is(err, errTooMany) {
			return Memory{}, nil // unknown
		}
		return Memory{RSS: &rss}, err
	}
	if err != nil {
		return Memory{}, err
	}
	memory := Memory{RSS: lookup(stat, "anon"), Cache: lookup(stat, "file"), Kernel: lookup(stat, "kernel")}
	for name, value := range map[string]**uint64{
		"memory.current":      &memory.Current,
		"memory.peak":         &memory.Peak,
		"memory.swap.current": &memory.Swap,
	} {
		text, err := fs.ReadFile(group, name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return Memory{}, fmt.Errorf("read usage: %w", err)
		}
		number, err := strconv.ParseUint(strings.TrimSpace(string(text)), 10, 64)
		if err != nil {
			return Memory{}, fmt.Errorf("parse %s: %w", name, err)
		}
		*value = &number
	}
	return memory, nil
}

func lookup(stat map[string]uint64, key string) *uint64 {
	if value, ok := stat[key]; ok {
		return &value
	}
	return nil
}

// readFlat reads a "flat keyed" file of a control group.
func readFlat(group fs.FS, name string) (map[string]uint64, error) {
	text, err := fs.ReadFile(group, name)
	if err != nil {
		return nil, fmt.Errorf("read usage: %w", err)
	}
	values := map[string]uint64{}
	for line := range bytes.Lines(text) {
		key, value, _ := strings.Cut(strings.TrimSpace(string(line)), " ")
		number, err := strconv.ParseUint(value, 10, 64)
		if err != nil {
			return nil, fmt.Errorf("parse %s: line %q: %w", name, line, err)
		}
		values[key] = number
	}
	return values, nil
}

// Limits of what is read without a memory controller, because the container decides how
// many groups and processes there are.
const (
	maxUsageGroups    = 2048
	maxUsageProcesses = 4096
)

// errTooMany means that a machine has more groups or processes than are read.
var errTooMany = errors.New("too many control groups or processes")

// sumProcesses adds up a value over the processes of the group and of the groups below it.
func sumProcesses(group fs.FS, value func(pid int) uint64) (sum uint64, err error) {
	groups, processes := 0, 0
	err = fs.WalkDir(group, ".", func(path string, entry fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) { // the group was removed in the meantime
			return nil
		}
		if err != nil || entry.Name() != "cgroup.procs" {
			return err
		}
		if groups++; groups > maxUsageGroups {
			return errTooMany
		}
		text, err := fs.ReadFile(group, path)
		if passedOver(err) {
			return nil
		}
		if err != nil {
			return err
		}
		for line := range strings.FieldsSeq(string(text)) {
			pid, err := strconv.Atoi(line)
			if err != nil {
				return fmt.Errorf("parse %s: %w", path, err)
			}
			if processes++; processes > maxUsageProcesses {
				return errTooMany
			}
			sum += value(pid)
		}
		return nil
	})
	return sum, err
}

// passedOver reports whether a group has no processes to count: it has ended, before its
// file was opened or after that, or it is threaded, and those are listed above it.
func passedOver(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.EOPNOTSUPP)
}

// anonymousMemory is the anonymous memory of a process in bytes, 0 if it is gone. What
// processes share after a fork counts for each.
//
// /proc/PID/smaps_rollup would be more exact. But reading it takes the lock of the
// process's memory, which the container can hold forever, and time that grows with the
// memory.
func anonymousMemory(pid int) uint64 {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(line, "RssAnon:"); ok {
			kB, _ := strconv.ParseUint(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 10, 64)
			return kB * 1024
		}
	}
	return 0
}
