package nspawn

import (
	"context"
	"fmt"
	"time"

	"nomad-driver-nspawn/nspawn/enter"
	"nomad-driver-nspawn/nspawn/systemd"
)

// Adopt follows a machine that another plugin was about to start when it died, once
// it is up. The error is a *StartError if it never was.
func (m *Manager) Adopt(ctx context.Context, machine string, mode Mode) (*Follower, error) {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	if err := m.awaitComplete(ctx, machine); err != nil {
		return nil, fmt.Errorf("adopt machine %s: %w", machine, err)
	}
	return m.Follow(machine, mode), nil
}

// lookPeriod is how often an unfinished machine is looked at. What nspawn told of it
// was told to the plugin that died, so there is no event.
const lookPeriod = 10 * time.Millisecond

// awaitComplete waits until nspawn has set the machine up, or it has ended.
func (m *Manager) awaitComplete(ctx context.Context, machine string) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	look := time.NewTicker(lookPeriod)
	defer look.Stop()
	states := m.bus.WatchUnit(ctx, UnitName(machine))
	var unit systemd.UnitState
	for {
		select {
		case now, ok := <-states:
			if !ok {
				return fmt.Errorf("wait until it is up: %w", ctx.Err())
			}
			unit = now
			if exit, ok := ended(unit); ok {
				return neverUp(ctx, machine, unit, exit)
			}
		case <-look.C:
		}
		if leader, err := leader(int(unit.MainPID)); err == nil {
			if complete, err := enter.IsComplete(leader.pid); err == nil && complete {
				return nil
			}
		}
	}
}

// neverUp is the error of a machine that has ended before it was up. Who did not hear
// nspawn say that it is up can still tell by its exit status, which then is 1, and
// its complaint: it has none about a payload that exits.
func neverUp(ctx context.Context, machine string, unit systemd.UnitState, exit Exit) error {
	if gone(unit) {
		return &StartError{}
	}
	if exit != (Exit{Code: 1}) {
		return nil
	}
	if message := lastMessage(ctx, machine, unit); message != "" {
		return &StartError{Exit: exit, Message: message}
	}
	return nil
}
