// Package hostproc finds the processes of a disposable host as this machine sees them, in
// order to stop and kill them at once. A command that enters the host first takes tens of
// milliseconds, and by then the start of a task is over.
package hostproc

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"nomad-driver-nspawn/e2e/agent"
	"nomad-driver-nspawn/e2e/host"
)

// Process is a process of a host, below its PID 1.
type Process struct {
	PID, Parent int // as this machine sees them
	Inside      int // PID in its innermost namespace
	Args        []string

	started string // distinguishes it from a later process with its PID
}

// List returns the processes that descend from the host's PID 1, in no order. Commands
// that entered the host from outside are not included.
func List(h *host.Host) ([]Process, error) {
	leader, err := leader(h)
	if err != nil {
		return nil, err
	}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	all := map[int]Process{}
	for _, entry := range entries {
		pid, err := strconv.Atoi(entry.Name())
		if err != nil {
			continue
		}
		if p, err := read(pid); err == nil { // otherwise it has ended in the meantime
			all[pid] = p
		}
	}
	var list []Process
	for _, p := range all {
		for up, ok := all[p.Parent]; ok; up, ok = all[up.Parent] {
			if up.PID == leader {
				list = append(list, p)
				break
			}
		}
	}
	return list, nil
}

func leader(h *host.Host) (int, error) {
	pid, err := strconv.Atoi(filepath.Base(filepath.Dir(h.Root())))
	if err != nil {
		return 0, fmt.Errorf("find PID 1 of host %s: %w", h.Name(), err)
	}
	return pid, nil
}

// read parses proc_pid_stat(5) and other files of the process.
func read(pid int) (Process, error) {
	dir := fmt.Sprintf("/proc/%d/", pid)
	stat, err := os.ReadFile(dir + "stat")
	if err != nil {
		return Process{}, err
	}
	status, err := os.ReadFile(dir + "status")
	if err != nil {
		return Process{}, err
	}
	args, err := os.ReadFile(dir + "cmdline")
	if err != nil {
		return Process{}, err
	}
	// The second field is a name in parentheses that may contain any characters.
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	if len(fields) < 20 || fields[0] == "Z" {
		return Process{}, os.ErrProcessDone
	}
	p := Process{PID: pid, Args: strings.Split(strings.TrimSuffix(string(args), "\x00"), "\x00"), started: fields[19]}
	if p.Parent, err = strconv.Atoi(fields[1]); err != nil {
		return Process{}, err
	}
	_, nspid, _ := strings.Cut(string(status), "\nNSpid:")
	nspid, _, _ = strings.Cut(nspid, "\n")
	if ids := strings.Fields(nspid); len(ids) > 0 {
		p.Inside, err = strconv.Atoi(ids[len(ids)-1])
	}
	return p, err
}

// Kind selects processes of a task or of its host.
type Kind func(h *host.Host, p Process, all []Process) bool

// Plugin selects the driver, but not its helpers that run in machines.
func Plugin(_ *host.Host, p Process, _ []Process) bool {
	return len(p.Args) == 1 && p.Args[0] == agent.Plugin
}

// Agent selects the Nomad agent, but not its log collectors.
func Agent(_ *host.Host, p Process, _ []Process) bool {
	return len(p.Args) > 1 && p.Args[0] == agent.Nomad && p.Args[1] == "agent"
}

// Daemon selects a daemon of the host's systemd, not of a machine's.
func Daemon(name string) Kind {
	return func(h *host.Host, p Process, _ []Process) bool {
		pid, err := leader(h)
		return err == nil && p.Parent == pid && filepath.Base(p.Args[0]) == name
	}
}

// Nspawn selects the systemd-nspawn of a machine.
func Nspawn(machine string) Kind {
	return func(_ *host.Host, p Process, all []Process) bool {
		up, _ := find(all, p.Parent)
		return isNspawn(p, machine) && !isNspawn(up, machine) // it forks while it starts
	}
}

func isNspawn(p Process, machine string) bool {
	return len(p.Args) > 1 && filepath.Base(p.Args[0]) == "systemd-nspawn" && slices.Contains(p.Args, "--machine="+machine)
}

// Leader selects PID 1 of a machine: the payload, the stub init, or the guest's init.
func Leader(machine string) Kind {
	return func(_ *host.Host, p Process, all []Process) bool {
		up, ok := find(all, p.Parent)
		return ok && p.Inside == 1 && isNspawn(up, machine)
	}
}

// Payload selects the payload below the stub init.
func Payload(machine string) Kind {
	isLeader := Leader(machine)
	return func(h *host.Host, p Process, all []Process) bool {
		up, ok := find(all, p.Parent)
		return ok && p.Inside == 2 && isLeader(h, up, all)
	}
}

func find(all []Process, pid int) (Process, bool) {
	i := slices.IndexFunc(all, func(p Process) bool { return p.PID == pid })
	if i < 0 {
		return Process{}, false
	}
	return all[i], true
}

// All returns the processes of a kind that are running now.
func All(h *host.Host, kind Kind) ([]Process, error) {
	all, err := List(h)
	if err != nil {
		return nil, err
	}
	var list []Process
	for _, p := range all {
		if kind(h, p, all) {
			list = append(list, p)
		}
	}
	return list, nil
}

// One returns the only process of a kind.
func One(h *host.Host, kind Kind) (Process, error) {
	list, err := All(h, kind)
	if err == nil && len(list) != 1 {
		err = fmt.Errorf("find a process of host %s: want one, found %v", h.Name(), list)
	}
	if err != nil {
		return Process{}, err
	}
	return list[0], nil
}

// Signal sends a signal to this process only.
func (p Process) Signal(sig unix.Signal) error {
	fd, err := p.open()
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.PidfdSendSignal(fd, sig, nil, 0); err != nil {
		return fmt.Errorf("signal process %d: %w", p.PID, err)
	}
	return nil
}

// Ended waits until the process has ended.
func (p Process) Ended(ctx context.Context) error {
	fd, err := p.open()
	if errors.Is(err, os.ErrProcessDone) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := Poll(ctx, fd, unix.POLLIN); err != nil {
		return fmt.Errorf("wait for the end of process %d: %w", p.PID, err)
	}
	return nil
}

// open opens a pidfd of the process, so that no other process can be meant.
func (p Process) open() (fd int, err error) {
	fd, err = unix.PidfdOpen(p.PID, 0)
	if errors.Is(err, unix.ESRCH) {
		return -1, os.ErrProcessDone
	}
	if err != nil {
		return -1, fmt.Errorf("open process %d: %w", p.PID, err)
	}
	if now, err := read(p.PID); err != nil || now.started != p.started {
		unix.Close(fd)
		return -1, os.ErrProcessDone
	}
	return fd, nil
}

// Poll waits for events of a file descriptor.
func Poll(ctx context.Context, fd int, events int16) error {
	const slice = 100 * time.Millisecond // until ctx is looked at again
	for ctx.Err() == nil {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: events}}, int(slice.Milliseconds()))
		if err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("poll: %w", err)
		}
		if n > 0 {
			return nil
		}
	}
	return ctx.Err()
}
