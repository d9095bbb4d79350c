// Package enter runs a process inside a running machine, for exec and script
// checks. It needs nothing in the container: no systemd, no shell, no getent.
//
// The process gets what the leader has: its namespaces, root directory,
// cgroup, capability bounding set, no_new_privs, seccomp filters and resource
// limits. It is made in three steps, so that nothing of the host is ever in
// reach of the container:
//
//	plugin ── nsenter ── shim ─┬─ process
//	         (user, net, uts,  │  (pid namespace; the plugin's own child,
//	         ipc, cgroup)      │  by CLONE_PARENT)
//	                           └ one thread: mount namespace, user, confinement
//
// This package is the plugin's side: it runs on the host and never in the
// container. Package container is the other side, the shim; package user finds the
// user in the container's own files.
//
// nsenter(1) is there because only a process with a single thread may join a
// user namespace, which no Go program has. It runs the shim (see container.Main), a
// program that was built in or this very one again, still among the host's
// processes and files and invisible to the container. One thread of the shim
// takes on all of the container's confinement and forks; only that child, which
// by then holds nothing but its stdio, is born in the container's pid namespace.
package enter

import (
	"context"
	"errors"
	"fmt"
	"io"
)

// Target is the machine to enter.
type Target struct {
	// Leader is the machine's PID 1 (the stub init in as-pid2 mode), by its
	// number on the host.
	Leader int
	// Cgroup is the absolute path of the cgroup2 directory that the leader is in.
	// Run looks for the leader there, to be sure that no other process has its PID
	// by now.
	Cgroup string
	// Delegated is the absolute path of the cgroup2 directory that the container was
	// given, at or above Cgroup. Each command gets a group of its own in it. The
	// container cannot freeze Delegated itself, only groups below.
	Delegated string
}

// ErrMoved says that the leader is not in the given cgroup, any more or yet: the
// machine has ended, or its systemd is just taking its place in init.scope.
var ErrMoved = errors.New("the machine's leader is elsewhere, or the machine has ended")

// Size is the size of a terminal in characters.
type Size struct {
	Rows, Cols uint16
}

// Command is what to run.
type Command struct {
	// Argv is the command; one without a slash is looked for in Env's PATH.
	Argv []string
	// Env is the environment; HOME, PATH, USER and LOGNAME, and with TTY also
	// TERM, are added where it lacks them.
	Env []string
	// Dir is the working directory, "" the root directory.
	Dir string
	// User is a name or uid of the container's own, optionally followed by
	// ":" and a group name or gid; "" is the container's root.
	User string
	// TTY allocates a terminal of the container's. Stdout then gets all output.
	TTY bool
	// Stdin is copied to the process until it ends; nil is an empty input. Run
	// does not wait for a blocked Read, so who calls Run has to end it.
	Stdin io.Reader
	// Stdout and Stderr get the output; nil discards it.
	Stdout, Stderr io.Writer
	// Resize tells the terminal's size, first and whenever it changes.
	Resize <-chan Size
}

// Run runs the command and returns its exit code: 128+n if signal n killed it,
// 127 if it was not found and 126 if it could not be executed, both with a
// message on its stderr. The error is non-nil only if it could not be run at
// all, or cannot be killed. When ctx is done, the command and every process that it
// has started are killed.
//
// Run returns when the command's own process has exited and what it wrote was
// copied, even if processes it left behind still hold its output open.
func Run(ctx context.Context, target Target, command Command) (int, error) {
	if len(command.Argv) == 0 || command.Argv[0] == "" {
		return 0, errors.New("enter machine: no command given")
	}
	leader, err := openLeader(ctx, target)
	if err != nil {
		return 0, fmt.Errorf("enter machine: %w", err)
	}
	defer leader.close()
	streams, err := openStreams(&command)
	if err != nil {
		return 0, fmt.Errorf("enter machine: %w", err)
	}
	defer streams.close()
	process, err := start(ctx, leader, streams, &command)
	if err != nil {
		return 0, fmt.Errorf("enter machine: %w", err)
	}
	if process.terminal != nil {
		streams.attach(process.terminal)
	}
	if process.failure != "" {
		_, err := process.end()
		streams.writeError(process.failure)
		return process.code, err
	}
	streams.start()
	code, err := process.wait(ctx)
	streams.finish(ctx)
	if err != nil {
		return 0, fmt.Errorf("enter machine: %w", err)
	}
	return code, nil
}
