package systemd

import (
	"context"
	"errors"
	"fmt"

	"github.com/godbus/dbus/v5"
)

// waiter waits for the end of a job of one unit. It is made before the job, whose
// path is known only from the reply: the job may have ended by then.
type waiter struct {
	unit    string
	arrived <-chan struct{}            // see session.arrival
	results map[dbus.ObjectPath]string // guarded by session.mu
	wake    chan struct{}
}

func (s *session) expectJob(unit string) *waiter {
	s.mu.Lock()
	defer s.mu.Unlock()
	w := &waiter{unit: unit, arrived: s.arrived, results: make(map[dbus.ObjectPath]string), wake: make(chan struct{}, 1)}
	s.jobs[w] = struct{}{}
	return w
}

func (s *session) forgetJob(w *waiter) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.jobs, w)
}

func (s *session) jobRemoved(unit string, path dbus.ObjectPath, result string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for w := range s.jobs {
		if w.unit != unit {
			continue
		}
		w.results[path] = result
		select {
		case w.wake <- struct{}{}:
		default:
		}
	}
}

// wait returns the result of the job at path.
func (s *session) wait(ctx context.Context, w *waiter, path dbus.ObjectPath) (string, error) {
	for {
		s.mu.Lock()
		result, ended := w.results[path]
		s.mu.Unlock()
		if ended {
			return result, nil
		}
		select {
		case <-w.wake:
		case <-w.arrived: // systemd was away, and our signal may be lost
			return "", fmt.Errorf("%w while waiting for the job", errLost)
		case <-s.raw.Context().Done():
			return "", fmt.Errorf("%w while waiting for the job", errLost)
		case <-ctx.Done():
			return "", waitEnded(ctx)
		}
	}
}

// job does r, which makes a job, and waits for its end. If the connection breaks
// meanwhile, judge tells from the state of the unit how the job has ended.
func (c *Conn) job(ctx context.Context, r request, judge func(UnitState) error) error {
	return again(r, func() error {
		s, err := c.session(ctx)
		if err != nil {
			return err
		}
		w := s.expectJob(r.name)
		defer s.forgetJob(w)

		var path dbus.ObjectPath
		if err := s.call(ctx, r, &path); err != nil {
			return err
		}
		result, err := s.wait(ctx, w, path)
		switch {
		case errors.Is(err, errLost):
			state, err := c.idle(ctx, r.name)
			if err != nil {
				return err
			}
			return judge(state)
		case err != nil:
			return err
		case result != "done":
			return &JobError{Unit: r.name, Result: result}
		}
		return nil
	})
}

// idle returns the state of a unit as soon as it has no job.
func (c *Conn) idle(ctx context.Context, unit string) (UnitState, error) {
	watchCtx, cancel := context.WithCancel(ctx)
	defer cancel()
	for state := range c.WatchUnit(watchCtx, unit) {
		if state.JobID == 0 {
			return state, nil
		}
	}
	if c.ctx.Err() != nil {
		return UnitState{}, errClosed
	}
	return UnitState{}, waitEnded(ctx)
}

// waitEnded is the error of a wait for a job that ended with its context.
func waitEnded(ctx context.Context) error {
	return fmt.Errorf("wait for the job, which goes on: %w", ctx.Err())
}

// StartTransientUnit makes and starts a unit, and waits until its start job has
// ended: for Type=exec until the program runs, for Type=notify until it is
// ready. Without a deadline in ctx it waits 90 s. Files passed as
// [dbus.UnixFD] remain the caller's to close.
//
// A unit of that name that is loaded already, even failed or finished, is an
// error that is [ErrUnitExists]. A job that does not end well is a [*JobError].
// If the connection breaks before systemd's answer, or ctx ends, the unit may
// have been started nevertheless; use [Conn.Unit] or [Conn.StopUnit].
func (c *Conn) StartTransientUnit(ctx context.Context, name string, properties []Property) error {
	ctx, cancel := withJobTimeout(ctx)
	defer cancel()
	r := manager("start unit", name, "StartTransientUnit", name, "fail", properties, []auxUnit{})
	r.once = true
	return r.wrap(c.job(ctx, r, func(state UnitState) error {
		switch state.ActiveState {
		case "active", "activating", "reloading":
			return nil
		}
		return &JobError{Unit: name, Result: "failed"}
	}))
}

// StopUnit stops a unit and waits until it has stopped, without a deadline in
// ctx for 90 s. A unit that is not loaded counts as stopped. A failed unit stays
// failed, and loaded, until [Conn.ResetFailedUnit].
func (c *Conn) StopUnit(ctx context.Context, name string) error {
	ctx, cancel := withJobTimeout(ctx)
	defer cancel()
	r := manager("stop unit", name, "StopUnit", name, "replace")
	err := r.wrap(c.job(ctx, r, func(state UnitState) error {
		switch state.ActiveState {
		case "inactive", "failed":
			return nil
		}
		return &JobError{Unit: name, Result: "failed"}
	}))
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	return err
}

// withJobTimeout sets a deadline if ctx has none.
func withJobTimeout(ctx context.Context) (context.Context, context.CancelFunc) {
	if _, ok := ctx.Deadline(); ok {
		return context.WithCancel(ctx)
	}
	return context.WithTimeout(ctx, jobTimeout)
}
