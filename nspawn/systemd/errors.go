package systemd

import (
	"errors"
	"fmt"
	"io"
	"net"
	"syscall"

	"github.com/godbus/dbus/v5"
)

var (
	// ErrNotFound says that no such unit is loaded, or that there is no such
	// machine or image.
	ErrNotFound = errors.New("not found")

	// ErrUnitExists says that a unit of that name is loaded already, be it
	// running, failed or finished.
	ErrUnitExists = errors.New("unit exists")

	// ErrNoProcess says that the unit has no process to send a signal to.
	ErrNoProcess = errors.New("no process")
)

var (
	// errClosed is the answer to every call after Close.
	errClosed = errors.New("connection was closed")

	// errLost: the connection broke before the reply; the call may have been done.
	errLost = errors.New("connection lost")

	// errAway: systemd was not on the bus, but came back; the call was not done.
	errAway = errors.New("systemd was away from the bus")

	// errAbsent: systemd is not on the bus and did not come within returnTimeout.
	errAbsent = errors.New("systemd is not on the bus; is it running?")
)

// Error is the type of all errors of this package. Use [errors.Is] with
// [ErrNotFound], [ErrUnitExists] and [ErrNoProcess], and [errors.As] with
// [*JobError], to tell them apart.
type Error struct {
	Op   string // what was tried, such as "start unit"
	Name string // of the unit, machine, image or bus name; may be empty
	Err  error
}

func (e *Error) Error() string {
	if e.Name == "" {
		return fmt.Sprintf("%s: %v", e.Op, e.Err)
	}
	return fmt.Sprintf("%s %s: %v", e.Op, e.Name, e.Err)
}

func (e *Error) Unwrap() error { return e.Err }

// Is translates the names of D-Bus errors to the errors of this package.
func (e *Error) Is(target error) bool {
	var reply dbus.Error
	if !errors.As(e.Err, &reply) {
		return false
	}
	switch reply.Name {
	case "org.freedesktop.systemd1.NoSuchUnit", "org.freedesktop.machine1.NoSuchMachine", "org.freedesktop.machine1.NoSuchImage",
		"org.freedesktop.DBus.Error.UnknownObject": // it went between the look-up and the question
		return target == ErrNotFound
	case "org.freedesktop.systemd1.UnitExists":
		return target == ErrUnitExists
	case "org.freedesktop.systemd1.NoSuchProcess":
		return target == ErrNoProcess
	}
	return false
}

// JobError says that systemd accepted a job but did not bring it to a good end.
type JobError struct {
	Unit   string
	Result string // as of JobRemoved in org.freedesktop.systemd1(5): canceled, timeout, failed, dependency, skipped, …
}

func (e *JobError) Error() string {
	return fmt.Sprintf("job of %s ended with %q", e.Unit, e.Result)
}

// broken tells whether a call failed because of its connection.
func broken(err error) bool {
	for _, e := range []error{dbus.ErrClosed, io.EOF, io.ErrUnexpectedEOF, net.ErrClosed, syscall.EPIPE, syscall.ECONNRESET} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}
