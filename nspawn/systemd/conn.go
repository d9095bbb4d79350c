// Package systemd is a D-Bus client of systemd and systemd-machined.
//
// It starts, stops and follows transient units, and looks up machines and images. A
// [Conn] connects when it is first used, and connects again after the bus, or systemd
// itself (daemon-reexec), has left. Every call has a deadline.
package systemd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/godbus/dbus/v5"
)

const (
	// callTimeout is the default of sd-bus (BUS_DEFAULT_TIMEOUT).
	callTimeout = 25 * time.Second

	// jobTimeout is the default of systemd (DefaultTimeoutStartSec=,
	// DefaultTimeoutStopSec=).
	jobTimeout = 90 * time.Second
)

const (
	systemdName   = "org.freedesktop.systemd1"
	systemdPath   = dbus.ObjectPath("/org/freedesktop/systemd1")
	managerIface  = "org.freedesktop.systemd1.Manager"
	propertyIface = "org.freedesktop.DBus.Properties"
	busName       = "org.freedesktop.DBus"
	busPath       = dbus.ObjectPath("/org/freedesktop/DBus")
)

// A Dialer opens a new, private connection to a message bus. The connection must be ready
// for use, which means authenticated and past Hello. The Dialer must give up when ctx
// ends, but the connection must outlive ctx.
type Dialer func(ctx context.Context) (*dbus.Conn, error)

// SystemBus is the Dialer for this host's system bus, or for the bus in the environment
// variable DBUS_SYSTEM_BUS_ADDRESS.
func SystemBus(ctx context.Context) (*dbus.Conn, error) {
	address := os.Getenv("DBUS_SYSTEM_BUS_ADDRESS")
	if address == "" {
		address = "unix:path=/run/dbus/system_bus_socket"
	}
	conn, err := Bus(address)(ctx)
	if err != nil {
		return nil, fmt.Errorf("connect to system bus %s: %w; is dbus running?", strings.TrimPrefix(address, "unix:path="), err)
	}
	return conn, nil
}

// Bus returns a Dialer for the bus at a D-Bus address, such as
// "unix:path=/run/dbus/system_bus_socket".
func Bus(address string) Dialer {
	return func(ctx context.Context) (*dbus.Conn, error) {
		conn, err := dbus.Dial(address)
		if err != nil {
			return nil, err
		}
		// Auth and Hello take no context, so the connection is closed to end them.
		stop := context.AfterFunc(ctx, func() { conn.Close() })
		err = conn.Auth([]dbus.Auth{dbus.AuthExternal(strconv.Itoa(os.Getuid()))})
		if err == nil {
			err = conn.Hello()
		}
		if !stop() {
			return nil, context.Cause(ctx)
		}
		if err != nil {
			conn.Close()
			return nil, err
		}
		return conn, nil
	}
}

// Conn is a client of systemd. Several goroutines may use it at once. Its only state is
// the connection and the watches on it.
type Conn struct {
	dial   Dialer
	ctx    context.Context // canceled by Close
	cancel context.CancelFunc

	// gate holds a token while a goroutine uses current. It is a channel and not a mutex,
	// so that a wait for a slow dial ends with the waiter's own context.
	gate    chan struct{}
	current *session
}

// New returns a Conn that dials when it is first used.
func New(dial Dialer) *Conn {
	ctx, cancel := context.WithCancel(context.Background())
	return &Conn{dial: dial, ctx: ctx, cancel: cancel, gate: make(chan struct{}, 1)}
}

// Close ends the connection and all watches. Calls in progress and later calls fail.
func (c *Conn) Close() {
	c.cancel()
	c.gate <- struct{}{}
	defer func() { <-c.gate }()
	if c.current != nil {
		c.current.raw.Close()
	}
}

// session returns the current connection, or opens a new one if there is none or if the
// last one has broken.
func (c *Conn) session(ctx context.Context) (*session, error) {
	select {
	case c.gate <- struct{}{}:
		defer func() { <-c.gate }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if c.ctx.Err() != nil {
		return nil, errClosed
	}
	if c.current != nil && c.current.raw.Connected() {
		return c.current, nil
	}
	// Close waits for the gate, so it must be able to end a dial in progress.
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(c.ctx, cancel)()
	s, err := openSession(ctx, c.dial)
	if err != nil {
		return nil, err
	}
	c.current = s
	return s, nil
}

// request is a method call, and describes it for error messages.
type request struct {
	op, name string // for Error
	dest     string
	path     dbus.ObjectPath
	method   string // with its interface
	args     []any
	once     bool // the call must not be repeated, because it is not idempotent
}

// manager returns a request to systemd's manager object.
func manager(op, name, method string, args ...any) request {
	return request{op: op, name: name, dest: systemdName, path: systemdPath, method: managerIface + "." + method, args: args}
}

// getAll returns a request for the properties of an object. An empty iface requests the
// properties of all interfaces, so that one call returns one consistent state.
func getAll(op, name, dest string, path dbus.ObjectPath, iface string) request {
	return request{op: op, name: name, dest: dest, path: path, method: propertyIface + ".GetAll", args: []any{iface}}
}

// wrap converts the error of a request to an Error.
func (r request) wrap(err error) error {
	if err == nil {
		return nil
	}
	return &Error{Op: r.op, Name: r.name, Err: err}
}

// call executes a request and stores the values of the reply.
func (c *Conn) call(ctx context.Context, r request, reply ...any) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	return r.wrap(retry(r, func() error {
		s, err := c.session(ctx)
		if err != nil {
			return err
		}
		return s.call(ctx, r, reply...)
	}))
}

// retry calls do, and calls it a second time if systemd was not on the bus, or if the
// connection broke and the request may be repeated.
func retry(r request, do func() error) error {
	err := do()
	if errors.Is(err, errAway) || (errors.Is(err, errLost) && !r.once) {
		return do()
	}
	return err
}
