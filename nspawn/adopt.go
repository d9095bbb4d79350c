package nspawn

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"nomad-driver-nspawn/nspawn/gate"
	"nomad-driver-nspawn/nspawn/machine"
)

// Adopt follows a machine that another plugin was starting when it died. If the payload
// still waits at the gate, Adopt lets it begin, as Start does. After an error nothing is
// left, as with Start.
func (m *Manager) Adopt(ctx context.Context, name string, mode machine.Mode, begin Begin) (*Follower, error) {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	if !m.hasGate(name) || m.adoptBegun(ctx, name, mode) {
		return m.Follow(name, mode, begin), nil
	}
	follower, err := m.adoptWaiting(ctx, name, mode, begin)
	if err != nil {
		undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), startTimeout)
		defer cancel()
		return nil, fmt.Errorf("adopt machine %s: %w", name, errors.Join(err, m.Remove(undo, name)))
	}
	return follower, nil
}

func (m *Manager) adoptWaiting(ctx context.Context, name string, mode machine.Mode, begin Begin) (*Follower, error) {
	g, err := gate.Listen(m.dirs.Gate(name))
	if err != nil {
		return nil, err
	}
	defer g.Close()
	w, err := m.awaitUnlessBegun(ctx, name, mode, g)
	if errors.Is(err, errBegun) {
		return m.Follow(name, mode, begin), nil
	}
	if err != nil {
		return nil, err
	}
	socket, _ := listenNotify(m.dirs.Notify(name))
	follower := m.follow(name, mode, begin, socket)
	follower.hold(w.payload)
	follower.fresh = w.leader.Parent
	if err := m.begin(ctx, name, w, begin); err != nil {
		follower.Close()
		return nil, err
	}
	return follower, nil
}

// errBegun says that a payload needs nobody to let it begin.
var errBegun = errors.New("the payload has begun")

// begunInterval is the time between two looks whether a payload has begun. No event tells of
// its execve(2).
const begunInterval = 100 * time.Millisecond

// awaitUnlessBegun is awaitPayload, but the error is errBegun if the payload begins: a plugin
// that has died may have given it the word, and a busy host takes a while to execute it.
func (m *Manager) awaitUnlessBegun(ctx context.Context, name string, mode machine.Mode, g *gate.Gate) (waiting, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	looked := make(chan struct{})
	go func() {
		defer close(looked)
		look := time.NewTicker(begunInterval)
		defer look.Stop()
		for ctx.Err() == nil {
			if m.adoptBegun(ctx, name, mode) {
				cancel(errBegun)
			}
			select {
			case <-look.C:
			case <-ctx.Done():
			}
		}
	}()
	w, err := m.awaitPayload(ctx, name, mode, g)
	cancel(nil)
	<-looked
	return w, err
}

// adoptBegun reports whether the payload of a machine has begun, as far as another
// plugin has recorded it. If it has, it may have ended.
func (m *Manager) adoptBegun(ctx context.Context, name string, mode machine.Mode) bool {
	if _, err := os.Stat(m.dirs.Begun(name)); errors.Is(err, os.ErrNotExist) {
		return false
	}
	leader, err := m.leader(ctx, name)
	return err != nil || m.hasBegun(name, mode, leader)
}
