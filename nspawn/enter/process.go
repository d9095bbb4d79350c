package enter

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"nomad-driver-nspawn/nspawn/enter/container"
)

// process is the process in the machine: our child, head of a session.
type process struct {
	pid      int
	cgroup   string
	terminal *os.File // nil without TTY
	failure  string   // why it could not execute the command
	code     int      // then its exit code
	release  func()   // ends the watch over its context
}

// start makes the process. It returns when that executes the command or has
// failed to.
func start(ctx context.Context, l *leader, s *streams, command *Command) (*process, error) {
	shim, err := startShim(l, s.child, &container.Instructions{
		Argv: command.Argv, Env: command.Env, Dir: command.Dir, User: command.User,
		TTY: command.TTY, Confinement: l.confinement,
	})
	s.started()
	if err != nil {
		return nil, fmt.Errorf("start shim: %w", err)
	}
	defer shim.close()

	// Until its session begins, the process is in the shim's process group.
	release := guard(ctx, shim.kill)
	first, terminal, err := shim.receive()
	release()
	if err != nil || first.Pid == 0 {
		status := shim.abandon()
		if err == nil {
			err = shim.explain(status)
		}
		return nil, err
	}
	p := &process{pid: first.Pid, cgroup: l.groupDir, terminal: terminal}
	p.release = guard(ctx, p.kill)
	// The shim waits for the process, which the container may tamper with.
	release = guard(ctx, shim.kill)
	second, _, err := shim.receive()
	release()
	if status := shim.reap(); err == nil && status != 0 && ctx.Err() == nil {
		err = shim.explain(status)
	}
	if err != nil {
		p.kill()
		p.wait()
		if terminal != nil {
			terminal.Close()
		}
		return nil, err
	}
	p.failure, p.code = second.Failure, second.Code
	return p, nil
}

// guard has kill called when ctx is done, until release is called. After that
// kill neither runs nor will: the pid may be reaped.
func guard(ctx context.Context, kill func()) (release func()) {
	killed := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		kill()
		close(killed)
	})
	return func() {
		if !stop() {
			<-killed
		}
	}
}

// wait returns the exit code of the process and reaps it.
func (p *process) wait() int {
	// WNOWAIT leaves the zombie, and so the pid, until nobody kills it any more.
	for errors.Is(unix.Waitid(unix.P_PID, p.pid, nil, unix.WEXITED|unix.WNOWAIT, nil), unix.EINTR) {
	}
	p.release()
	status := reap(p.pid)
	if status.Signaled() {
		return 128 + int(status.Signal())
	}
	return status.ExitStatus()
}

// killPasses is how often a session is looked through for processes that were
// forked while it was being killed.
const killPasses = 10

// kill kills the process and all that is in its session.
func (p *process) kill() {
	_ = unix.Kill(p.pid, unix.SIGKILL)
	for range killPasses {
		procs, err := os.ReadFile(filepath.Join(p.cgroup, "cgroup.procs"))
		if err != nil {
			return // the machine has ended
		}
		killed := false
		for member := range strings.FieldsSeq(string(procs)) {
			if pid, err := strconv.Atoi(member); err == nil && pid != p.pid && killMember(pid, p.pid) {
				killed = true
			}
		}
		if !killed {
			return
		}
	}
}

// killMember kills the process if it is in the session.
func killMember(pid, session int) bool {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	// The name before the last parenthesis may contain anything; then come
	// state, parent, process group and session (proc_pid_stat(5)).
	fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
	if len(fields) < 4 || string(fields[3]) != strconv.Itoa(session) {
		return false
	}
	return unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0) == nil
}
