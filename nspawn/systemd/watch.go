package systemd

import (
	"context"
	"errors"
	"time"

	sd "github.com/coreos/go-systemd/v22/dbus"
	"github.com/godbus/dbus/v5"
)

// Limits of the wait between two attempts to reach the bus. A bus that is not listening
// can send no event when it returns, so watches poll.
const (
	minBackoff = 50 * time.Millisecond
	maxBackoff = 5 * time.Second
)

// watch follows one unit.
type watch struct {
	conn *Conn
	unit string
	path dbus.ObjectPath
	pid  int           // the state need not be read while this is the main process; 0 means that it must be
	wake chan struct{} // receives a value when the unit has changed
	out  chan UnitState

	latest UnitState
	unsent bool // latest has not been sent yet
}

// WatchUnit sends the current state of a unit at once, and again after each change. A
// slow reader may miss intermediate states, but never the latest one. A unit that is not
// loaded has LoadState "not-found"; it may be loaded later.
//
// The watch survives restarts of the bus and of systemd. If there is no bus, it waits for
// one. The channel is closed when ctx ends or c is closed.
func (c *Conn) WatchUnit(ctx context.Context, name string) <-chan UnitState {
	return c.WatchProcess(ctx, name, 0)
}

// WatchProcess is like WatchUnit, but sends no state while pid is still the service's
// main process. Use it right after a start: reading the state takes systemd 4 ms and us 2
// ms, and the new program needs that CPU time.
func (c *Conn) WatchProcess(ctx context.Context, name string, pid int) <-chan UnitState {
	w := &watch{
		pid:  pid,
		conn: c,
		unit: name,
		path: systemdPath + "/unit/" + dbus.ObjectPath(sd.PathBusEscape(name)),
		wake: make(chan struct{}, 1),
		out:  make(chan UnitState),
	}
	go w.run(ctx)
	return w.out
}

// run follows the unit over one connection after another.
func (w *watch) run(ctx context.Context) {
	defer close(w.out)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(w.conn.ctx, cancel)()

	for backoff := minBackoff; ctx.Err() == nil; backoff = min(2*backoff, maxBackoff) {
		if w.runSession(ctx) {
			backoff = minBackoff
		}
		pause, cancel := context.WithTimeout(ctx, backoff)
		w.serve(pause)
		cancel()
	}
}

// runSession follows the unit until the connection breaks or ctx ends. It reports whether
// it could read the state at least once.
func (w *watch) runSession(ctx context.Context) (ok bool) {
	s, err := w.conn.session(ctx)
	if err != nil {
		return false
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(s.raw.Context(), cancel)()

	stop, err := s.watch(ctx, w.path, w.wake)
	if err != nil {
		return false
	}
	defer stop()
	if w.processUnchanged(ctx) && !w.serve(ctx) {
		return true
	}
	for {
		state, err := w.conn.Unit(ctx, w.unit)
		if errors.Is(err, ErrNotFound) {
			state = notLoaded()
		} else if err != nil {
			return ok
		}
		ok = true
		// systemd sends signals for properties that a UnitState does not contain, and
		// separate signals for each interface.
		if state != w.latest {
			w.latest, w.unsent = state, true
		}
		if !w.serve(ctx) {
			return ok
		}
	}
}

// processUnchanged reports at its first call whether pid is still the main process, so
// that the state need not be read.
func (w *watch) processUnchanged(ctx context.Context) bool {
	if w.pid == 0 {
		return false
	}
	pid, err := w.conn.MainPID(ctx, w.unit)
	known := err == nil && pid == w.pid
	w.pid = 0
	return known
}

// serve offers the latest state to the reader. It returns true when the unit has changed,
// and false when ctx ends.
func (w *watch) serve(ctx context.Context) (changed bool) {
	for {
		var out chan<- UnitState
		if w.unsent {
			out = w.out
		}
		select {
		case out <- w.latest:
			w.unsent = false
		case <-w.wake:
			return true
		case <-ctx.Done():
			return false
		}
	}
}
