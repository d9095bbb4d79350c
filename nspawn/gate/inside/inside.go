// Package inside is the container's side of package gate: the shim, which
// systemd-nspawn runs as the payload. The shim says hello to the plugin, waits for
// its instructions, and becomes what they say.
//
// The package imports little, so that the program made of it starts within
// milliseconds.
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

// Called reports, from the program's arguments, whether it was started as the shim.
func Called(args []string) bool { return len(args) > 1 && args[1] == GateArg }

// Main is the shim. It never returns, and main calls it first thing.
func Main() {
	runtime.LockOSThread() // what a user may do is a thread's
	resetSignals()
	connection, todo := receive(GateDir)
	failure := todo.become()
	if err := answer(connection, failure); err != nil {
		fmt.Fprintln(os.Stderr, failure.Reason) // the plugin has gone: the task's log is left
	}
	os.Exit(failure.Code)
}

// receive returns the plugin's instructions, and the connection they came by. A plugin
// that goes away before it has sent them has started nothing: the shim waits for the next.
func receive(dir string) (connection int, todo *Instructions) {
	for {
		connection := connect(dir)
		if todo, err := exchange(connection); err == nil {
			return connection, todo
		}
		unix.Close(connection)
	}
}

// exchange says hello and waits for the instructions.
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
	failure.Reason = failure.Reason[:min(len(failure.Reason), MaxFailure/8)] // a character is up to 6 bytes of JSON
	message, err := json.Marshal(failure)
	if err != nil {
		return fmt.Errorf("encode failure: %w", err)
	}
	return send(connection, message)
}

// stream reads from a descriptor. Unlike os.File it needs no poller, which would
// add descriptors and threads.
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

// resetSignals gives up the handlers of the Go runtime, as far as it can do without
// them. A signal that stops the task has then the effect that it has on a process that
// does not know it. With the handlers, SIGRTMIN+3 would seem to be taken and be lost.
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
