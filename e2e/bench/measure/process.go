package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// processes are the processes of a running task, by PID.
type processes struct {
	nspawn, stub, payload int
	extra                 []int // all others of the unit
}

// startIdle starts a task with the driver's defaults that does nothing until it is
// destroyed. It returns when the payload runs.
func (p *plugin) startIdle() (*task, error) {
	t, err := p.newTask(map[string]any{
		"image": imageDir, "network_veth": false,
		"command": "sh", "args": []string{"-c", "echo up; exec sleep 1000000"},
	})
	if err != nil {
		return nil, err
	}
	if err := t.start(); err != nil {
		return nil, err
	}
	_, err = t.readLine()
	return t, err
}

// processes finds the task's processes with the help of systemd and the kernel.
func (t *task) processes(ctx context.Context) (processes, error) {
	status, err := t.plugin.driver.InspectTask(t.config.ID)
	if err != nil {
		return processes{}, fmt.Errorf("inspect task: %w", err)
	}
	unit := status.DriverAttributes["unit"]
	main, err := mainPID(ctx, unit)
	if err != nil {
		return processes{}, err
	}
	output, err := exec.CommandContext(ctx, "systemctl", "show", "--property=ControlGroup", "--value", unit).Output()
	if err != nil {
		return processes{}, fmt.Errorf("ask for the control group of %s: %w", unit, err)
	}
	all, err := members(filepath.Join("/sys/fs/cgroup", strings.TrimSpace(string(output))))
	if err != nil {
		return processes{}, err
	}
	return classify(main, all)
}

func mainPID(ctx context.Context, unit string) (int, error) {
	output, err := exec.CommandContext(ctx, "systemctl", "show", "--property=MainPID", "--value", unit).Output()
	if err != nil {
		return 0, fmt.Errorf("ask for the main process of %s: %w", unit, err)
	}
	return strconv.Atoi(strings.TrimSpace(string(output)))
}

// members returns the processes of a control group and of the groups below it.
func members(group string) (pids []int, err error) {
	err = filepath.WalkDir(group, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.Name() != "cgroup.procs" {
			return err
		}
		list, err := readPIDs(path)
		pids = append(pids, list...)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list processes of %s: %w", group, err)
	}
	return pids, nil
}

func readPIDs(path string) (pids []int, err error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	for field := range strings.FieldsSeq(string(text)) {
		pid, err := strconv.Atoi(field)
		if err != nil {
			return nil, fmt.Errorf("parse %s: %w", path, err)
		}
		pids = append(pids, pid)
	}
	return pids, nil
}

// children returns the children of a process, from all of its threads.
func children(pid int) (pids []int, err error) {
	lists, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	if err != nil {
		return nil, err
	}
	for _, list := range lists {
		more, err := readPIDs(list)
		if errors.Is(err, fs.ErrNotExist) { // a thread that ended
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("list children: %w", err)
		}
		pids = append(pids, more...)
	}
	return pids, nil
}

// classify identifies the unit's processes: nspawn has one child, the stub init, whose
// only child is the payload.
func classify(nspawn int, all []int) (processes, error) {
	p := processes{nspawn: nspawn}
	var err error
	if p.stub, err = onlyChild(nspawn); err != nil {
		return p, err
	}
	if p.payload, err = onlyChild(p.stub); err != nil {
		return p, err
	}
	p.extra = slices.DeleteFunc(all, func(pid int) bool {
		return pid == p.nspawn || pid == p.stub || pid == p.payload
	})
	return p, nil
}

func onlyChild(pid int) (int, error) {
	list, err := children(pid)
	if err != nil {
		return 0, err
	}
	if len(list) != 1 {
		return 0, fmt.Errorf("process %d has the children %v, not just one", pid, list)
	}
	return list[0], nil
}

// readKilobytes returns a field of a file in /proc/PID with lines like "Pss: 12 kB"
// (proc_pid_status(5), proc_pid_smaps(5)).
func readKilobytes(pid int, file, field string) (float64, error) {
	path := fmt.Sprintf("/proc/%d/%s", pid, file)
	text, err := os.ReadFile(path)
	if err != nil {
		return 0, fmt.Errorf("read memory of process %d: %w", pid, err)
	}
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(line, field+":"); ok {
			return strconv.ParseFloat(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 64)
		}
	}
	return 0, fmt.Errorf("read memory of process %d: no %s in %s", pid, field, path)
}

// ticks is USER_HZ, which is 100 on every architecture on which systemd runs.
const ticks = 100

// processorTime returns the processor time that a process has used, user and system.
func processorTime(pid int) (time.Duration, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, fmt.Errorf("read processor time: %w", err)
	}
	return parseProcessorTime(string(text))
}

// parseProcessorTime reads utime and stime, fields 14 and 15
// (proc_pid_stat(5)). The name, field 2, may contain anything.
func parseProcessorTime(stat string) (time.Duration, error) {
	fields := strings.Fields(stat[strings.LastIndexByte(stat, ')')+1:])
	if len(fields) < 13 {
		return 0, fmt.Errorf("parse processor time: %q is too short", stat)
	}
	user, err := strconv.ParseInt(fields[11], 10, 64)
	if err != nil {
		return 0, fmt.Errorf("parse processor time: %w", err)
	}
	system, err := strconv.ParseInt(fields[12], 10, 64)
	if err != nil {
		return 0, fmt.Errorf("parse processor time: %w", err)
	}
	return time.Duration(user+system) * (time.Second / ticks), nil
}

// descriptors returns the number of files that a process has open.
func descriptors(pid int) (float64, error) {
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		return 0, fmt.Errorf("count open files: %w", err)
	}
	return float64(len(entries)), nil
}
