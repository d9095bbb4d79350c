// Package enter runs a process inside a running machine, for exec and script checks. It
// needs nothing in the container: no systemd, no shell, no getent.
//
// The process gets the same namespaces, root directory, cgroup, capability bounding set,
// no_new_privs, seccomp filters and resource limits as the leader. It is created in three
// steps, so that the container can never reach anything of the host:
//
//	plugin ── nsenter ── shim ─┬─ process
//	         (user, net, uts,  │  (pid namespace; the plugin's own child,
//	         ipc, cgroup)      │  by CLONE_PARENT)
//	                           └ one thread: mount namespace, user, confinement
//
// This package is the plugin's side: it runs on the host and never in the container.
// Package container is the other side, the shim. Package user looks up users in the
// container's own files.
//
// nsenter(1) is needed because only a single-threaded process may join a user namespace,
// and every Go program has several threads. nsenter executes the shim (see
// container.Main), which is a program built into the plugin, or the plugin's own program.
// At that point the shim still has the host's pid namespace and files, and is invisible
// to the container. One thread of the shim takes on all of the container's confinement
// and forks. Only this child, which then holds nothing but its stdio, is created in the
// container's pid namespace.
package enter

import (
	"context"
	"errors"
	"fmt"
	"io"
)

// Target is a machine to enter.
type Target struct {
	// Leader is the PID on the host of the machine's PID 1, which is the stub init in
	// as-pid2 mode.
	Leader int
	// Cgroup is the absolute path of the cgroup2 directory that contains the leader. Run
	// checks that the leader is in it, to be sure that no other process has got its PID.
	Cgroup string
	// Delegated is the absolute path of the cgroup2 directory that was delegated to the
	// container. It is Cgroup or one of its parents. Run creates a group in it for each
	// command. The container cannot freeze Delegated itself, only groups below it.
	Delegated string
}

// ErrMoved means that the leader is not, or not yet, in the given cgroup: the machine has
// ended, or its systemd is just moving to init.scope.
var ErrMoved = errors.New("the machine's leader is in another cgroup, or the machine has ended")

// Size is the size of a terminal in characters.
type Size struct {
	Rows, Cols uint16
}

// Command describes the process to run.
type Command struct {
	// Argv is the command; a command without a slash is looked up in Env's PATH.
	Argv []string
	// Env is the environment. HOME, PATH, USER and LOGNAME, and TERM with TTY, are added
	// if they are missing.
	Env []string
	// Dir is the working directory; "" is the root directory.
	Dir string
	// User is a user name or UID of the container, optionally followed by ":" and a group
	// name or GID; "" is the container's root.
	User string
	// TTY allocates a terminal of the container. Stdout then receives all output.
	TTY bool
	// Stdin is copied to the process until it ends; nil is an empty input. Run does not
	// wait for a blocked Read, so the caller has to end it.
	Stdin io.Reader
	// Stdout and Stderr receive the output; nil discards it. If they are the same pointer,
	// the process has one pipe for both, so that the order of what it writes is kept.
	Stdout, Stderr io.Writer
	// Resize receives the size of the terminal, at first and whenever it changes.
	Resize <-chan Size
}

// Run runs the command and returns its exit code. The exit code is 128+n if signal n
// killed the command, 127 if it was not found, and 126 if it could not be executed; the
// last two come with a message on stderr. The error is non-nil only if the command could
// not be run at all, or cannot be killed. When ctx is done, Run kills the command and
// every process that it has started.
//
// Run returns when the command's own process has exited and its output has been copied,
// even if processes that it left behind still hold the output open.
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
