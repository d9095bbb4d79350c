// Package container is the container's side of package enter: the shim, which becomes a
// process of the machine, step by step. See [Main]. The plugin's side starts it with
// descriptors, [Instructions] and a socket for its [Reply].
//
// The package knows nothing of the host and imports little, so that the program
// made of it starts within milliseconds.
package container

import (
	"encoding/json"
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// Exit codes of a command that the container can not run, as shells have them.
const (
	exitNotExecutable = 126
	exitNotFound      = 127
)

// First arguments with which the program has to call [Main].
const (
	// PlaceArg makes the program start another one in a cgroup, as in "SHIM
	// start-in-cgroup PROGRAM ARGUMENT…": enter.Run starts the shim by it.
	PlaceArg = "start-in-cgroup"
	// EnterArg makes the program the shim that enter.Run starts.
	EnterArg = "enter-machine"
)

// Called reports, from the program's arguments, whether it was started as the shim.
func Called(args []string) bool {
	return len(args) > 1 && (args[1] == PlaceArg || args[1] == EnterArg)
}

// Main is the shim. It never returns, and main calls it first thing.
func Main() {
	run := enterMain
	if os.Args[1] == PlaceArg {
		run = func() error { return placeMain(os.Args[2:]) }
	}
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	// Not os.Exit: with the race detector that takes a second.
	unix.Exit(0)
}

// enterMain makes the process and reports it to enter.Run. Two threads share the
// work: this one stays on the host's side, the other becomes the container's.
func enterMain() error {
	// None of the container's users looks into what follows but its root, who can see
	// the forked process: its memory belongs to the container's user namespace. It
	// holds the instructions and nothing of the host.
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("make shim undumpable: %w", err)
	}
	var todo Instructions
	if err := json.NewDecoder(os.NewFile(FDInstructions, "instructions")).Decode(&todo); err != nil {
		return fmt.Errorf("read instructions: %w", err)
	}
	if err := awaitWord(); err != nil { // that its starter has reported it
		return err
	}
	type result struct {
		child forkedProcess
		err   error
	}
	forked, reported, executed := make(chan result), make(chan struct{}), make(chan unix.Errno)
	go func() {
		runtime.LockOSThread() // and never back: nothing else may run on it
		child, err := todo.enterAndFork()
		forked <- result{child, err}
		<-reported
		executed <- child.execute()
	}()
	r := <-forked
	if r.err != nil {
		return send(Reply{Error: r.err.Error()}, nil)
	}
	if err := send(Reply{Pid: r.child.pid}, r.child.terminal); err != nil {
		return err
	}
	close(reported)
	if errno := <-executed; errno != 0 {
		return send(failure(todo.Argv[0], errno), nil)
	}
	return nil
}

// failure has the exit codes of shells.
func failure(command string, errno unix.Errno) Reply {
	switch errno {
	case unix.ENOENT, unix.ENOTDIR:
		return Reply{Code: exitNotFound, Failure: command + ": not found"}
	default:
		return Reply{Code: exitNotExecutable, Failure: fmt.Sprintf("%s: %s", command, errno)}
	}
}

// maxText bounds the texts of a reply, so that it fits into one packet.
const maxText = 4096

func send(r Reply, terminal *os.File) error {
	r.Error, r.Failure = r.Error[:min(len(r.Error), maxText)], r.Failure[:min(len(r.Failure), maxText)]
	message, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("encode reply: %w", err)
	}
	var rights []byte
	if terminal != nil {
		rights = unix.UnixRights(int(terminal.Fd()))
	}
	if err := unix.Sendmsg(FDReplies, message, rights, nil, 0); err != nil {
		return fmt.Errorf("send reply: %w", err)
	}
	return nil
}
