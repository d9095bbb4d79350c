// Package systemd is a client of systemd and systemd-machined over D-Bus.
//
// It starts, stops and follows transient units and looks up machines and
// images. A [Conn] connects when it is first used and connects again after the
// bus, or systemd itself (daemon-reexec), went away. Every call has a deadline.
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
	// callTimeout is sd-bus' own default (BUS_DEFAULT_TIMEOUT).
	callTimeout = 25 * time.Second

	// jobTimeout is systemd's DefaultTimeoutStartSec= and DefaultTimeoutStopSec=.
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

// A Dialer opens a new, private connection to a message bus, ready for use:
// authenticated and past Hello. It must give up when ctx ends, but a connection
// it returned must outlive ctx.
type Dialer func(ctx context.Context) (*dbus.Conn, error)

// SystemBus is the Dialer for the system bus of this host, or for the one that
// the environment variable DBUS_SYSTEM_BUS_ADDRESS names.
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

// Bus returns a Dialer for the bus at a D-Bus address such as
// "unix:path=/run/dbus/system_bus_socket".
func Bus(address string) Dialer {
	return func(ctx context.Context) (*dbus.Conn, error) {
		conn, err := dbus.Dial(address)
		if err != nil {
			return nil, err
		}
		// Auth and Hello take no context; closing the connection ends them.
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

// Conn is a client of systemd. It may be used by several goroutines at once.
// Besides its connection and the watches that run on it, it has no state.
type Conn struct {
	dial   Dialer
	ctx    context.Context // ended by Close
	cancel context.CancelFunc

	// gate holds a token while somebody looks at or replaces current. It is a
	// channel and not a mutex so that waiting for a slow dial ends with the
	// waiter's own context.
	gate    chan struct{}
	current *session
}

// New returns a Conn that dials when it is first used.
func New(dial Dialer) *Conn {
	ctx, cancel := context.WithCancel(context.Background())
	return &Conn{dial: dial, ctx: ctx, cancel: cancel, gate: make(chan struct{}, 1)}
}

// Close ends the connection and all watches. Calls under way, and later ones,
// fail.
func (c *Conn) Close() {
	c.cancel()
	c.gate <- struct{}{}
	defer func() { <-c.gate }()
	if c.current != nil {
		c.current.raw.Close()
	}
}

// session returns the present connection, or a new one if there is none yet or
// the last one broke.
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
	// Close must be able to end a dial under way: it waits for the gate.
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

// request is one method call and how errors of it are to be named.
type request struct {
	op, name string // for Error
	dest     string
	path     dbus.ObjectPath
	method   string // with its interface
	args     []any
	once     bool // doing it twice is not the same as doing it once
}

// manager returns a request to systemd's manager object.
func manager(op, name, method string, args ...any) request {
	return request{op: op, name: name, dest: systemdName, path: systemdPath, method: managerIface + "." + method, args: args}
}

// getAll returns a request for the properties of an object. An empty iface asks
// for those of all its interfaces: one call, hence one consistent picture.
func getAll(op, name, dest string, path dbus.ObjectPath, iface string) request {
	return request{op: op, name: name, dest: dest, path: path, method: propertyIface + ".GetAll", args: []any{iface}}
}

// wrap makes the error of r one that may leave the package.
func (r request) wrap(err error) error {
	if err == nil {
		return nil
	}
	return &Error{Op: r.op, Name: r.name, Err: err}
}

// call does r and stores the values of the reply.
func (c *Conn) call(ctx context.Context, r request, reply ...any) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	return r.wrap(again(r, func() error {
		s, err := c.session(ctx)
		if err != nil {
			return err
		}
		return s.call(ctx, r, reply...)
	}))
}

// again runs do, and once more if the connection broke or systemd was away,
// unless r may have been done already and must not be repeated.
func again(r request, do func() error) error {
	err := do()
	if errors.Is(err, errAway) || (errors.Is(err, errLost) && !r.once) {
		return do()
	}
	return err
}
