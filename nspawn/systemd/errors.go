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
	// ErrNotFound means that the unit is not loaded, or that there is no such machine or
	// image.
	ErrNotFound = errors.New("not found")

	// ErrUnitExists means that a unit of this name is already loaded, whether it is
	// running, has failed or has finished.
	ErrUnitExists = errors.New("unit exists")

	// ErrNoProcess means that the unit has no process that could receive a signal.
	ErrNoProcess = errors.New("no process")
)

var (
	// errClosed is the error of every call after Close.
	errClosed = errors.New("connection was closed")

	// errLost means that the connection broke before the reply; the call may have had its
	// effect.
	errLost = errors.New("connection lost")

	// errAway means that systemd was not on the bus but has returned; the call had no
	// effect.
	errAway = errors.New("systemd was not on the bus")

	// errAbsent means that systemd is not on the bus and did not return within
	// returnTimeout.
	errAbsent = errors.New("systemd is not on the bus; is it running?")
)

// Error is the type of all errors of this package. To tell them apart, use [errors.Is]
// with [ErrNotFound], [ErrUnitExists] and [ErrNoProcess], and [errors.As] with
// [*JobError].
type Error struct {
	Op   string // the operation, such as "start unit"
	Name string // name of the unit, machine, image or bus name; may be empty
	Err  error
}

func (e *Error) Error() string {
	if e.Name == "" {
		return fmt.Sprintf("%s: %v", e.Op, e.Err)
	}
	return fmt.Sprintf("%s %s: %v", e.Op, e.Name, e.Err)
}

func (e *Error) Unwrap() error { return e.Err }

// Is maps the names of D-Bus errors to the errors of this package.
func (e *Error) Is(target error) bool {
	var reply dbus.Error
	if !errors.As(e.Err, &reply) {
		return false
	}
	switch reply.Name {
	case "org.freedesktop.systemd1.NoSuchUnit", "org.freedesktop.machine1.NoSuchMachine", "org.freedesktop.machine1.NoSuchImage",
		"org.freedesktop.DBus.Error.UnknownObject": // the object was removed between the two calls of a look-up
		return target == ErrNotFound
	case "org.freedesktop.systemd1.UnitExists":
		return target == ErrUnitExists
	case "org.freedesktop.systemd1.NoSuchProcess":
		return target == ErrNoProcess
	}
	return false
}

// JobError means that systemd accepted a job but the job did not succeed.
type JobError struct {
	Unit   string
	Result string // from JobRemoved in org.freedesktop.systemd1(5): canceled, timeout, failed, dependency, skipped, …
}

func (e *JobError) Error() string {
	return fmt.Sprintf("job of %s ended with %q", e.Unit, e.Result)
}

// isConnectionError reports whether a call failed because of its connection.
func isConnectionError(err error) bool {
	for _, e := range []error{dbus.ErrClosed, io.EOF, io.ErrUnexpectedEOF, net.ErrClosed, syscall.EPIPE, syscall.ECONNRESET} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}
