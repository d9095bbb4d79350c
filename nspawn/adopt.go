package nspawn

import (
	"context"
	"errors"
	"fmt"
	"os"

	"nomad-driver-nspawn/nspawn/gate"
)

// Adopt follows a machine that another plugin was about to start when it died. If the
// payload still waits at the gate, Adopt lets it begin, as Start does. On an error nothing
// is left, as with Start.
func (m *Manager) Adopt(ctx context.Context, machine string, mode Mode, begin Begin) (*Follower, error) {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	if !m.hasGate(machine) || m.adoptBegun(ctx, machine, mode) {
		return m.Follow(machine, mode, begin), nil
	}
	follower, err := m.adoptWaiting(ctx, machine, mode, begin)
	if err != nil {
		undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), startTimeout)
		defer cancel()
		return nil, fmt.Errorf("adopt machine %s: %w", machine, errors.Join(err, m.Remove(undo, machine)))
	}
	return follower, nil
}

func (m *Manager) adoptWaiting(ctx context.Context, machine string, mode Mode, begin Begin) (*Follower, error) {
	g, err := gate.Listen(m.dirs.gate(machine))
	if err != nil {
		return nil, err
	}
	defer g.Close()
	w, err := m.awaitPayload(ctx, machine, mode, g)
	if err != nil {
		return nil, err
	}
	socket, _ := listenNotify(m.dirs.notify(machine))
	follower := m.follow(machine, mode, begin, socket)
	follower.hold(w.payload)
	follower.fresh = w.leader.parent
	if err := m.begin(ctx, machine, w, begin); err != nil {
		follower.Close()
		return nil, err
	}
	return follower, nil
}

// adoptBegun reports whether the payload of a machine has begun, as far as another
// plugin has recorded it. If it has, it may have ended.
func (m *Manager) adoptBegun(ctx context.Context, machine string, mode Mode) bool {
	if _, err := os.Stat(m.dirs.begun(machine)); errors.Is(err, os.ErrNotExist) {
		return false
	}
	leader, err := m.leader(ctx, machine)
	return err != nil || m.hasBegun(machine, mode, leader)
}
