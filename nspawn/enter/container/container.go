// Package container is the container's side of package enter: the shim, which becomes a
// process of the machine step by step (see [Main]). The plugin's side starts it with file
// descriptors, [Instructions], and a socket for its [Reply].
//
// The package does not depend on the host and has few imports, so that the program made
// of it starts within milliseconds.
package container

import (
	"encoding/json"
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// Exit codes of a command that the container cannot run, the same as in shells.
const (
	exitNotExecutable = 126
	exitNotFound      = 127
)

// First arguments of a program that must call [Main].
const (
	// PlaceArg makes the program start another program in a cgroup, as in "SHIM
	// start-in-cgroup PROGRAM ARGUMENT…". enter.Run starts the shim in this way.
	PlaceArg = "start-in-cgroup"
	// EnterArg makes the program run as the shim of enter.Run.
	EnterArg = "enter-machine"
)

// Called reports whether the program's arguments ask it to run as the shim.
func Called(args []string) bool {
	return len(args) > 1 && (args[1] == PlaceArg || args[1] == EnterArg)
}

// Main runs the shim and never returns. main calls it before anything else.
func Main() {
	run := enterMain
	if os.Args[1] == PlaceArg {
		run = func() error { return placeMain(os.Args[2:]) }
	}
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	// os.Exit is not used, because it takes a second with the race detector.
	unix.Exit(0)
}

// enterMain creates the process and reports it to enter.Run. Two threads share the work:
// this one stays on the host's side, and the other one enters the container.
func enterMain() error {
	// Of the container's users, only root can read the forked process, whose memory
	// belongs to the container's user namespace. That memory holds the instructions, and
	// nothing of the host.
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("make shim undumpable: %w", err)
	}
	var todo Instructions
	if err := json.NewDecoder(os.NewFile(FDInstructions, "instructions")).Decode(&todo); err != nil {
		return fmt.Errorf("read instructions: %w", err)
	}
	if err := awaitByte(); err != nil { // the starter has reported the shim
		return err
	}
	type result struct {
		child forkedProcess
		err   error
	}
	forked, reported, executed := make(chan result), make(chan struct{}), make(chan unix.Errno)
	go func() {
		runtime.LockOSThread() // never unlocked, because no other goroutine may run on this thread
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

// failure returns a reply with the exit codes of shells.
func failure(command string, errno unix.Errno) Reply {
	switch errno {
	case unix.ENOENT, unix.ENOTDIR:
		return Reply{Code: exitNotFound, Failure: command + ": not found"}
	default:
		return Reply{Code: exitNotExecutable, Failure: fmt.Sprintf("%s: %s", command, errno)}
	}
}

// maxText limits the texts of a reply, so that it fits into one packet.
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
