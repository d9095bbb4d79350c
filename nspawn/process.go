package nspawn

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"nomad-driver-nspawn/nspawn/cgroup"
	"nomad-driver-nspawn/nspawn/machine"
	"nomad-driver-nspawn/nspawn/pidfd"
)

// process is a process of a machine, found in /proc.
type process struct {
	pid    int
	parent int
	inside int // PID in its innermost namespace
}

func readProcess(pid int) (process, error) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return process{}, fmt.Errorf("read status of process %d: %w", pid, err)
	}
	p := process{pid: pid}
	for line := range bytes.Lines(status) {
		key, value, _ := strings.Cut(string(line), ":")
		fields := strings.Fields(value)
		switch {
		case len(fields) == 0:
		case key == "PPid":
			p.parent, err = strconv.Atoi(fields[0])
		case key == "NSpid": // outermost namespace first (proc_pid_status(5))
			p.inside, err = strconv.Atoi(fields[len(fields)-1])
		}
		if err != nil {
			return process{}, fmt.Errorf("parse status of process %d: %w", pid, err)
		}
	}
	return p, nil
}

// child is the child of a process that has the given PID in its own namespace.
func child(parent, inside int) (process, error) {
	list, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", parent, parent))
	if err != nil {
		return process{}, fmt.Errorf("list children of process %d: %w", parent, err)
	}
	for field := range strings.FieldsSeq(string(list)) {
		pid, err := strconv.Atoi(field)
		if err != nil {
			return process{}, fmt.Errorf("list children of process %d: %w", parent, err)
		}
		// A child that ended meanwhile is none.
		if p, err := readProcess(pid); err == nil && p.inside == inside && p.parent == parent {
			return p, nil
		}
	}
	return process{}, fmt.Errorf("process %d has no child that is PID %d of its namespace: %w", parent, inside, os.ErrProcessDone)
}

// leader is the machine's PID 1: the child of systemd-nspawn that heads a PID
// namespace. Its short-lived other children do not.
func leader(nspawnPID int) (process, error) { return child(nspawnPID, 1) }

// payload is the process that the job asked for.
func payloadProcess(leader process, m machine.Mode) (process, error) {
	if m == machine.ProcessTwo {
		return child(leader.pid, 2)
	}
	return leader, nil
}

// signal sends a signal to just this process.
func (p process) signal(sig unix.Signal) error {
	file := p.open()
	if file == nil {
		return fmt.Errorf("signal process %d: %w", p.pid, os.ErrProcessDone)
	}
	defer file.Close()
	if err := unix.PidfdSendSignal(int(file.Fd()), sig, nil, 0); err != nil {
		return fmt.Errorf("signal process %d: %w", p.pid, err)
	}
	return nil
}

// awaitEnd returns when the main process of a unit has ended, or ctx is done.
func awaitEnd(ctx context.Context, pid int, unit string) {
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if err != nil {
		return
	}
	file := os.NewFile(uintptr(fd), "process") // which epoll can wait for
	defer file.Close()
	// Another may have got its PID meanwhile.
	if group, err := cgroup.Of(pid); err != nil || !strings.Contains(group+"/", "/"+unit+"/") {
		return
	}
	defer context.AfterFunc(ctx, func() { file.Close() })() // which ends the wait
	_ = pidfd.Await(file)
}

// takes says whether the process blocks or handles a signal, so that it is not
// lost on an init, which has no default actions.
func (p process) takes(sig unix.Signal) bool {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.pid))
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
