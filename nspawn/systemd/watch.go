package systemd

import (
	"context"
	"errors"
	"time"

	sd "github.com/coreos/go-systemd/v22/dbus"
	"github.com/godbus/dbus/v5"
)

// The bounds of the wait between two attempts to reach the bus. No event tells
// that a bus is back where none is listening.
const (
	minBackoff = 50 * time.Millisecond
	maxBackoff = 5 * time.Second
)

// watch follows one unit.
type watch struct {
	conn *Conn
	unit string
	path dbus.ObjectPath
	pid  int           // the state is known as long as this is the main process; 0: it is not
	wake chan struct{} // poked when the unit has changed
	out  chan UnitState

	latest UnitState
	unsent bool // latest was not sent yet
}

// WatchUnit sends the present state of a unit at once, and again after each
// change. A slow reader misses states in between but never the latest. A unit
// that is not loaded has LoadState "not-found"; it may come, or come back, later.
// The watch outlives restarts of the bus and of systemd. The channel is closed
// when ctx ends or c is closed. Where there is no bus now, it waits for one.
func (c *Conn) WatchUnit(ctx context.Context, name string) <-chan UnitState {
	return c.WatchProcess(ctx, name, 0)
}

// WatchProcess is WatchUnit for who knows that pid was the main process of a
// service: while it is, no state is sent. To read one takes systemd 4 ms, and
// us half of that again, when a program that was just started needs the time.
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

// run follows the unit over one connection after the other.
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

// runSession follows the unit until the connection breaks or ctx ends. It tells
// whether it could read the state at least once.
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
	if w.unchanged(ctx) && !w.serve(ctx) {
		return true
	}
	for {
		state, err := w.conn.Unit(ctx, w.unit)
		if errors.Is(err, ErrNotFound) {
			state = gone()
		} else if err != nil {
			return ok
		}
		ok = true
		// systemd signals more than what is in a UnitState, and each interface apart.
		if state != w.latest {
			w.latest, w.unsent = state, true
		}
		if !w.serve(ctx) {
			return ok
		}
	}
}

// unchanged tells, once, whether there is nothing to be told yet.
func (w *watch) unchanged(ctx context.Context) bool {
	if w.pid == 0 {
		return false
	}
	pid, err := w.conn.MainPID(ctx, w.unit)
	known := err == nil && pid == w.pid
	w.pid = 0
	return known
}

// serve lets the reader have the latest state until the unit has changed, which
// it tells by true, or ctx ends.
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
