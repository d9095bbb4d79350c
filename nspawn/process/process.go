// Package process finds the processes of a machine in /proc. The leader is the machine's
// PID 1 as the host sees it; the payload is what the job asked to run. Processes are
// signalled and waited for by pidfd, so that no other process with the same PID is hit.
package process

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Process is a process of a machine, found in /proc.
type Process struct {
	PID    int // on the host
	Parent int // on the host
	Inside int // PID in its innermost namespace
}

// Read looks up a process by its PID on the host.
func Read(pid int) (Process, error) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return Process{}, fmt.Errorf("read status of process %d: %w", pid, done(err))
	}
	return parseStatus(pid, status)
}

// parseStatus reads /proc/PID/status (proc_pid_status(5)). A process may name itself as it
// likes, but the kernel escapes line feeds in the name.
func parseStatus(pid int, status []byte) (p Process, err error) {
	p.PID = pid
	for line := range bytes.Lines(status) {
		key, value, _ := strings.Cut(string(line), ":")
		fields := strings.Fields(value)
		switch {
		case len(fields) == 0:
		case key == "PPid":
			p.Parent, err = strconv.Atoi(fields[0])
		case key == "NSpid": // outermost namespace first (proc_pid_status(5))
			p.Inside, err = strconv.Atoi(fields[len(fields)-1])
		}
		if err != nil {
			return Process{}, fmt.Errorf("parse status of process %d: %w", pid, err)
		}
	}
	return p, nil
}

// done adds os.ErrProcessDone to an error of /proc that says that the process has ended:
// before its file was opened, or after that.
func done(err error) error {
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("%w: %w", os.ErrProcessDone, err)
	}
	return err
}

// child is the child of a process that has the given PID in its own namespace.
func child(parent, inside int) (Process, error) {
	list, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", parent, parent))
	if err != nil {
		return Process{}, fmt.Errorf("list children of process %d: %w", parent, done(err))
	}
	for field := range strings.FieldsSeq(string(list)) {
		pid, err := strconv.Atoi(field)
		if err != nil {
			return Process{}, fmt.Errorf("list children of process %d: %w", parent, err)
		}
		// The child may have ended in the meantime.
		if p, err := Read(pid); err == nil && p.Inside == inside && p.Parent == parent {
			return p, nil
		}
	}
	return Process{}, fmt.Errorf("process %d has no child that is PID %d of its namespace: %w", parent, inside, os.ErrProcessDone)
}

// Takes reports whether the process blocks or handles a signal. Otherwise the signal would
// be lost on an init, which has no default actions.
func (p Process) Takes(sig unix.Signal) bool {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.PID))
	if err != nil {
		return false
	}
	for line := range bytes.Lines(status) {
		key, value, _ := strings.Cut(string(line), ":")
		if key != "SigBlk" && key != "SigCgt" {
			continue
		}
		mask, err := strconv.ParseUint(strings.TrimSpace(value), 16, 64)
		if err == nil && mask&(1<<(sig-1)) != 0 {
			return true
		}
	}
	return false
}

// Identity identifies a process forever: by its PID and its start time.
func (p Process) Identity() (string, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.PID))
	if err != nil {
		return "", fmt.Errorf("identify process %d: %w", p.PID, done(err))
	}
	started, ok := startTime(stat)
	if !ok {
		return "", fmt.Errorf("identify process %d: its status is cut off", p.PID)
	}
	return fmt.Sprintf("%d %s", p.PID, started), nil
}

// startTime returns when a process was started from /proc/PID/stat. The process's name
// before the last parenthesis may contain anything; the start time is the twentieth field
// behind it (proc_pid_stat(5)).
func startTime(stat []byte) (string, bool) {
	const index = 19
	fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
	if len(fields) <= index {
		return "", false
	}
	return string(fields[index]), true
}

// Program returns the path of the process's executable.
func (p Process) Program() (string, error) { return os.Readlink(fmt.Sprintf("/proc/%d/exe", p.PID)) }

// Argument0 returns the name by which the process was started. The process can change it.
func (p Process) Argument0() string {
	line, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", p.PID))
	name, _, _ := strings.Cut(string(line), "\x00")
	return name
}

// RootUID returns the UID on the host of the user that is root for the process.
func (p Process) RootUID() (int, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/uid_map", p.PID))
	if err != nil {
		return 0, fmt.Errorf("read the user namespace of process %d: %w", p.PID, err)
	}
	for line := range strings.Lines(string(text)) {
		var inside, outside, count int
		if _, err := fmt.Sscan(line, &inside, &outside, &count); err == nil && inside == 0 {
			return outside, nil
		}
	}
	return 0, fmt.Errorf("the user namespace of process %d has no root", p.PID)
}
