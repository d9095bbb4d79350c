// Package inside is the container's side of package gate: the shim, which systemd-nspawn
// runs as the payload. The shim sends a hello to the plugin, waits for its instructions,
// and executes what they ask for.
//
// The package has few imports, so that the program made of it starts within milliseconds.
package inside

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Called reports whether the program's arguments ask it to run as the shim.
func Called(args []string) bool { return len(args) > 1 && args[1] == GateArg }

// Main runs the shim and never returns. main calls it before anything else.
func Main() {
	runtime.LockOSThread() // user and group IDs are set per thread
	resetSignals()
	connection, todo := receive(GateDir)
	failure := todo.execute()
	if err := answer(connection, failure); err != nil {
		fmt.Fprintln(os.Stderr, failure.Reason) // the plugin has disconnected, so only the task's log is left
	}
	os.Exit(failure.Code)
}

// receive returns the plugin's instructions, and the connection over which they came. If
// a plugin disconnects before it has sent them, nothing has started yet, and the shim
// waits for the next plugin.
func receive(dir string) (connection int, todo *Instructions) {
	for {
		connection := connect(dir)
		if todo, err := exchange(connection); err == nil {
			return connection, todo
		}
		unix.Close(connection)
	}
}

// exchange sends a hello and waits for the instructions.
func exchange(connection int) (*Instructions, error) {
	hello, err := json.Marshal(Hello{Version: Version})
	if err != nil {
		return nil, fmt.Errorf("encode hello: %w", err)
	}
	if err := send(connection, hello); err != nil {
		return nil, err
	}
	todo := new(Instructions)
	if err := json.NewDecoder(stream(connection)).Decode(todo); err != nil {
		return nil, fmt.Errorf("read instructions: %w", err)
	}
	return todo, nil
}

func answer(connection int, failure *Failure) error {
	failure.Reason = failure.Reason[:min(len(failure.Reason), MaxFailure/8)] // a character can take up to 6 bytes in JSON
	message, err := json.Marshal(failure)
	if err != nil {
		return fmt.Errorf("encode failure: %w", err)
	}
	return send(connection, message)
}

// stream reads from a descriptor. Unlike os.File it needs no poller, which would add
// descriptors and threads.
type stream int

func (s stream) Read(buffer []byte) (int, error) {
	for {
		n, err := unix.Read(int(s), buffer)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return 0, fmt.Errorf("read: %w", err)
		case n == 0 && len(buffer) > 0:
			return 0, io.EOF
		default:
			return n, nil
		}
	}
}

func send(connection int, message []byte) error {
	for len(message) > 0 {
		n, err := unix.SendmsgN(connection, message, nil, nil, unix.MSG_NOSIGNAL)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return fmt.Errorf("send: %w", err)
		}
		message = message[n:]
	}
	return nil
}

// resetSignals removes the signal handlers of the Go runtime, except those that the
// runtime cannot work without. A signal that stops the task then has the same effect as
// on a process without handlers. With Go's handlers, a signal such as SIGRTMIN+3 would be
// accepted and have no effect.
func resetSignals() {
	var action [4]uint64 // struct sigaction with SIG_DFL
	for number := uintptr(1); number <= 64; number++ {
		switch syscall.Signal(number) {
		case unix.SIGSEGV, unix.SIGBUS, unix.SIGFPE, unix.SIGPIPE, unix.SIGURG, unix.SIGCHLD, unix.SIGKILL, unix.SIGSTOP:
			continue
		}
		unix.RawSyscall6(unix.SYS_RT_SIGACTION, number, uintptr(unsafe.Pointer(&action)), 0, 8, 0, 0)
	}
}
