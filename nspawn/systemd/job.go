package systemd

import (
	"context"
	"errors"
	"fmt"

	"github.com/godbus/dbus/v5"
)

// waiter collects the results of a unit's jobs. It must exist before the job is created:
// the path of the job is known only from the reply, and the job may have ended by then.
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

// wait waits for the job at path and returns its result.
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
		case <-w.arrived: // systemd was not on the bus, so the signal may be lost
			return "", fmt.Errorf("%w while waiting for the job", errLost)
		case <-s.raw.Context().Done():
			return "", fmt.Errorf("%w while waiting for the job", errLost)
		case <-ctx.Done():
			return "", waitEnded(ctx)
		}
	}
}

// job executes a request that creates a job, and waits for the job to end. If the
// connection breaks before that, judge infers the result of the job from the unit's
// state.
func (c *Conn) job(ctx context.Context, r request, judge func(UnitState) error) error {
	return retry(r, func() error {
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

// idle waits until a unit has no job, and returns the unit's state.
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

// waitEnded returns the error for a wait that ended with its context before the job did.
func waitEnded(ctx context.Context) error {
	return fmt.Errorf("wait for the job, which continues: %w", ctx.Err())
}

// StartTransientUnit creates and starts a unit, and waits until its start job has ended:
// with Type=exec until the program runs, with Type=notify until it is ready. If ctx has
// no deadline, it waits 90 s at most. The caller still has to close files that are passed
// as [dbus.UnixFD].
//
// If a unit of this name is already loaded, even a failed or finished one, the error is
// [ErrUnitExists]. If the job does not succeed, it is a [*JobError]. If the connection
// breaks before systemd answers, or if ctx ends, the unit may have been started
// nevertheless; use [Conn.Unit] or [Conn.StopUnit] then.
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

// StopUnit stops a unit and waits until it has stopped. If ctx has no deadline, it waits
// 90 s at most. A unit that is not loaded counts as stopped. A failed unit stays failed,
// and loaded, until [Conn.ResetFailedUnit].
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

// withJobTimeout adds a deadline if ctx has none.
func withJobTimeout(ctx context.Context) (context.Context, context.CancelFunc) {
	if _, ok := ctx.Deadline(); ok {
		return context.WithCancel(ctx)
	}
	return context.WithTimeout(ctx, jobTimeout)
}
