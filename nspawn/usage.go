package nspawn

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"time"
)

// Usage is what a machine uses at one instant, nspawn itself included. A value
// that this host cannot tell is nil: its controller is not enabled, or its
// kernel is too old.
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
	RSS     *uint64 // memory.stat anon; without a memory controller, the PSS of all processes
	Cache   *uint64 // memory.stat file
	Kernel  *uint64 // memory.stat kernel, kernel 5.18
	Swap    *uint64 // memory.swap.current
}

// Usage reads the control group of the machine's unit.
func (m *Manager) Usage(machine string) (Usage, error) {
	return readUsage(os.DirFS(unitGroup(machine)), processPSS)
}

// readUsage reads the files of a control group (cgroup-v2.rst). pss tells the
// proportional set size of a process, where the group has no memory files.
func readUsage(group fs.FS, pss func(pid int) uint64) (Usage, error) {
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
	usage.Memory, err = readMemory(group, pss)
	return usage, err
}

func readMemory(group fs.FS, pss func(pid int) uint64) (Memory, error) {
	stat, err := readFlat(group, "memory.stat")
	if errors.Is(err, fs.ErrNotExist) {
		rss, err := sumProcesses(group, pss)
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

// sumProcesses adds up a value over the processes of the group and those below.
func sumProcesses(group fs.FS, value func(pid int) uint64) (sum uint64, err error) {
	err = fs.WalkDir(group, ".", func(path string, entry fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) { // a group that ended meanwhile
			return nil
		}
		if err != nil || entry.Name() != "cgroup.procs" {
			return err
		}
		text, err := fs.ReadFile(group, path)
		if err != nil {
			return ignoreNotExist(err)
		}
		for line := range strings.FieldsSeq(string(text)) {
			pid, err := strconv.Atoi(line)
			if err != nil {
				return fmt.Errorf("parse %s: %w", path, err)
			}
			sum += value(pid)
		}
		return nil
	})
	return sum, err
}

// processPSS is the proportional set size of a process in bytes, 0 if it is
// gone (proc_pid_smaps(5)).
func processPSS(pid int) uint64 {
	file, err := os.Open(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		return 0
	}
	defer file.Close()
	for lines := bufio.NewScanner(file); lines.Scan(); {
		if value, ok := strings.CutPrefix(lines.Text(), "Pss:"); ok {
			kB, _ := strconv.ParseUint(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 10, 64)
			return kB * 1024
		}
	}
	return 0
}
