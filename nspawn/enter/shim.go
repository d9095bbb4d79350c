package enter

import (
	"encoding/json"
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// First arguments with which the program has to call [ShimMain].
const (
	// ShimArg makes the program the shim that Run starts.
	ShimArg = "enter-machine"
	// UserArg makes it the beginning of a payload's own command line, as in
	// "SHIM enter-user USER -- COMMAND ARGUMENT…": it runs the command as a
	// user of the image, which has no need of getent(1). See [Static].
	UserArg = "enter-user"
)

// Called tells from the program's arguments whether it is to be the shim.
func Called(args []string) bool {
	return len(args) > 1 && (args[1] == ShimArg || args[1] == UserArg)
}

// ShimMain is the shim. It never returns, and main calls it first thing.
func ShimMain() {
	if os.Args[1] == UserArg {
		userMain(os.Args[2:])
	}
	if err := enterMain(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	// Not os.Exit: with the race detector that takes a second.
	unix.Exit(0)
}

// enterMain makes the process and tells Run about it. Two threads share the
// work: this one stays on the host's side, the other becomes the container's.
func enterMain() error {
	// Nobody without CAP_SYS_PTRACE over the host looks into what follows.
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("make shim undumpable: %w", err)
	}
	var todo instructions
	if err := json.NewDecoder(os.NewFile(fdInstructions, "instructions")).Decode(&todo); err != nil {
		return fmt.Errorf("read instructions: %w", err)
	}
	type result struct {
		child newborn
		err   error
	}
	born, told, executed := make(chan result), make(chan struct{}), make(chan unix.Errno)
	go func() {
		runtime.LockOSThread() // and never back: nothing else may run on it
		child, err := todo.bear()
		born <- result{child, err}
		<-told
		executed <- child.execute()
	}()
	r := <-born
	if r.err != nil {
		return send(reply{Error: r.err.Error()}, nil)
	}
	if err := send(reply{Pid: r.child.pid}, r.child.terminal); err != nil {
		return err
	}
	close(told)
	if errno := <-executed; errno != 0 {
		return send(failure(todo.Argv[0], errno), nil)
	}
	return nil
}

// failure has the exit codes of shells.
func failure(command string, errno unix.Errno) reply {
	switch errno {
	case unix.ENOENT, unix.ENOTDIR:
		return reply{Code: exitNotFound, Failure: command + ": not found"}
	default:
		return reply{Code: exitNotExecutable, Failure: fmt.Sprintf("%s: %s", command, errno)}
	}
}

// maxText bounds the texts of a reply, so that it fits into one packet.
const maxText = 4096

func send(r reply, terminal *os.File) error {
	r.Error, r.Failure = r.Error[:min(len(r.Error), maxText)], r.Failure[:min(len(r.Failure), maxText)]
	message, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("encode reply: %w", err)
	}
	var rights []byte
	if terminal != nil {
		rights = unix.UnixRights(int(terminal.Fd()))
	}
	if err := unix.Sendmsg(fdReplies, message, rights, nil, 0); err != nil {
		return fmt.Errorf("send reply: %w", err)
	}
	return nil
}
