package enter

import (
	"context"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"nomad-driver-nspawn/nspawn/enter/container"
)

// process is the process in the machine. It is our child and leads a session.
type process struct {
	child
	group    *group
	terminal *os.File // nil without TTY
	failure  string   // reason why it could not execute the command
	code     int      // exit code that belongs to failure
	release  func()   // ends the watch that kills the process when the context is done
}

// setupTimeout limits the time until the process executes its command. That takes about
// 20 ms, unless the container delays it.
const setupTimeout = 30 * time.Second

var errSetup = fmt.Errorf("the container has delayed the start of the command for %s", setupTimeout)

// start creates the process. It returns when the process has executed the command or has
// failed to.
func start(ctx context.Context, l *leader, s *streams, command *Command) (*process, error) {
	setup, cancel := context.WithTimeoutCause(ctx, setupTimeout, errSetup)
	defer cancel()
	shim, err := startShim(setup, l, s.child, &container.Instructions{
		Argv: command.Argv, Env: command.Env, Dir: command.Dir, User: command.User,
		TTY: command.TTY, Confinement: l.confinement,
	})
	s.started()
	if err != nil {
		return nil, fmt.Errorf("start shim: %w", err)
	}
	defer shim.close()
	p, err := shim.forked(setup)
	if err != nil {
		return nil, err
	}
	p.group = l.group
	p.release = guard(ctx, p.kill)
	second, err := shim.finish(setup)
	if err != nil {
		p.kill()
		_, _ = p.end()
		if p.terminal != nil {
			p.terminal.Close()
		}
		return nil, err
	}
	p.failure, p.code = second.Failure, second.Code
	return p, nil
}

// forked returns the process as soon as the shim has forked it.
func (s *shim) forked(ctx context.Context) (p *process, err error) {
	// Until it has a session of its own, the process is in the shim's process group.
	release := guard(ctx, s.kill)
	first, terminal, err := s.receive()
	release()
	if err == nil && first.Pid != 0 {
		p = &process{terminal: terminal}
		if p.child, err = openChild(first.Pid); err == nil {
			return p, nil
		}
	}
	if terminal != nil {
		terminal.Close()
	}
	if err == nil {
		err = errNoReply
	}
	return nil, s.abandon(ctx, err)
}

// finish waits until the process has executed the command, and until the shim has ended.
// The shim waits for the process, which the container can delay.
func (s *shim) finish(ctx context.Context) (container.Reply, error) {
	release := guard(ctx, s.kill)
	second, _, err := s.receive()
	if err == nil {
		err = s.await(ctx)
	}
	release()
	if err != nil {
		s.kill()
	}
	status, reapErr := s.reap()
	switch {
	case ctx.Err() != nil:
		return second, context.Cause(ctx)
	case err != nil:
		return second, err
	case reapErr != nil:
		return second, reapErr
	case status != 0:
		return second, s.explain(status)
	}
	return second, nil
}

// guard calls kill when ctx is done, until release is called. After release, kill is
// neither running nor called any more, so the PID may be reaped.
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

// wait returns the exit code of the process and reaps it. After ctx is done, it waits
// only a little longer.
func (p *process) wait(ctx context.Context) (int, error) {
	_ = p.await(ctx)
	return p.end()
}

// end returns the exit code of a process that has ended, was killed or is about to exit.
func (p *process) end() (int, error) {
	defer p.child.close()
	// The zombie keeps the PID reserved until nothing can kill it any more.
	p.release()
	status, err := p.reap()
	if err != nil {
		return 0, err
	}
	if status.Signaled() {
		return 128 + int(status.Signal()), nil
	}
	return status.ExitStatus(), nil
}

// kill kills the process, and all processes that it has started and that are still in the
// command's cgroup.
func (p *process) kill() {
	_ = unix.Kill(p.pid, unix.SIGKILL)
	p.group.kill()
}
