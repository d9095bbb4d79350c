package nspawn

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"nomad-driver-nspawn/nspawn/machine"
	"nomad-driver-nspawn/nspawn/network"
	"nomad-driver-nspawn/nspawn/network/links"
	"nomad-driver-nspawn/nspawn/network/names"
)

// Connect connects a machine to its network. It is a step, so that the payload finds the
// network complete: address, route, names and forwarded ports.
func (m *Manager) Connect(ctx context.Context, s machine.Spec, waiting Waiting) (links.Connection, error) {
	namespace, err := waiting.openNamespace(machine.NetworkNamespace)
	if err != nil {
		return links.Connection{}, err
	}
	defer namespace.Close()
	c, err := m.networks.Connect(ctx, namespace, m.networkOf(s))
	if err != nil {
		return c, err
	}
	return c, m.rewriteNames(s, c)
}

// networkOf returns the network of a spec, with what package network needs to know about
// the host.
func (m *Manager) networkOf(s machine.Spec) network.Spec {
	return network.Spec{Spec: s.Link(), Mappings: s.Network.Ports, Alive: m.isAlive}
}

// aliveTimeout limits how long isAlive may take.
const aliveTimeout = 5 * time.Second

// isAlive reports whether there is a machine of the name. If that cannot be found out, it
// returns true.
func (m *Manager) isAlive(name string) bool {
	ctx, cancel := context.WithTimeout(context.Background(), aliveTimeout)
	defer cancel()
	_, err := m.unit(ctx, name)
	return !errors.Is(err, ErrLost)
}

// rewriteNames rewrites the files for name resolution with the machine's own address and
// what its network provides. In a zone, it makes the machine known to the other members.
func (m *Manager) rewriteNames(s machine.Spec, c links.Connection) error {
	now := s.Names.Connected(c)
	for _, file := range now.Files() {
		err := func() error {
			f, err := os.OpenFile(m.dirs.Named(s.Machine, file.Path), os.O_WRONLY, 0)
			if err != nil {
				return err
			}
			defer f.Close()
			return names.Rewrite(f, file.Content)
		}()
		if err != nil {
			return fmt.Errorf("write %s of the machine: %w", file.Path, err)
		}
	}
	if s.Network.Kind != links.Zone || now.Hosts == nil {
		return nil
	}
	return m.parts.JoinZone(s.Machine, s.Network.Of, now.Hosts.Own())
}

// KeepConnected looks after the network of a machine that runs, until ctx ends or there
// is nothing to do any more. The connection is that of its start, by whichever plugin.
// What fails because the machine has ended meanwhile is no failure.
func (m *Manager) KeepConnected(ctx context.Context, s machine.Spec, c links.Connection, failed func(error)) {
	notice := func(err error) {
		if !m.hasEnded(ctx, s.Machine) {
			failed(err)
		}
	}
	if !s.Connected() {
		m.connectGuest(ctx, s, notice)
		return
	}
	if err := m.networks.ForgetFlows(m.networkOf(s)); err != nil {
		notice(err)
	}
	if s.Network.Kind == links.Veth {
		return // the address has no end
	}
	open := func() (*os.File, error) { return m.openLeaderNetwork(ctx, s.Machine) }
	for {
		err := links.Keep(ctx, open, s.Machine, c, notice)
		if err == nil || m.hasEnded(ctx, s.Machine) {
			return
		}
		failed(err)
		if c, err = m.leaseAgain(ctx, s, c, open); err != nil {
			return
		}
		if err := m.rewriteNames(s, c); err != nil {
			notice(err)
		}
	}
}

// hasEnded reports whether there is no machine to look after any more: ctx or the machine
// has ended. A guest that reboots has ended for a moment.
func (m *Manager) hasEnded(ctx context.Context, name string) bool {
	_, err := m.leader(ctx, name)
	return ctx.Err() != nil || errors.Is(err, os.ErrProcessDone) || errors.Is(err, ErrLost)
}

// leaseAgainDelay is the time between two tries to get an address again.
const leaseAgainDelay = 10 * time.Second

// leaseAgain tries until the machine has an address again, or ctx ends. Nobody else asks
// for one, and the server may return at any time.
func (m *Manager) leaseAgain(ctx context.Context, s machine.Spec, c links.Connection, open func() (*os.File, error)) (links.Connection, error) {
	for {
		namespace, err := open()
		if err == nil {
			next, err := m.networks.Lease(ctx, namespace, m.networkOf(s), c)
			namespace.Close()
			if err == nil {
				return next, nil
			}
		}
		select {
		case <-ctx.Done():
			return c, ctx.Err()
		case <-time.After(leaseAgainDelay):
		}
	}
}

// connectGuest forwards ports to a guest once it has an address. While a guest reboots, it
// has no leader for a moment.
func (m *Manager) connectGuest(ctx context.Context, s machine.Spec, notice func(error)) {
	if len(s.Network.Ports) == 0 {
		return
	}
	const patience = 10 // attempts
	for n := 1; ; n++ {
		err := m.connectGuestOnce(ctx, s)
		if err == nil || ctx.Err() != nil {
			return
		}
		if n == patience {
			notice(err)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(beginAgainDelay):
		}
	}
}

func (m *Manager) connectGuestOnce(ctx context.Context, s machine.Spec) error {
	namespace, err := m.openLeaderNetwork(ctx, s.Machine)
	if err != nil {
		return err
	}
	defer namespace.Close()
	return m.networks.ConnectGuest(ctx, namespace, m.networkOf(s))
}

func (m *Manager) openLeaderNetwork(ctx context.Context, name string) (*os.File, error) {
	leader, err := m.leader(ctx, name)
	if err != nil {
		return nil, err
	}
	identity, err := leader.Identity()
	if err != nil {
		return nil, err
	}
	return Waiting{Leader: leader.PID, identity: identity}.openNamespace(machine.NetworkNamespace)
}

// Reconnect restores what is missing of the connection of a machine that another plugin
// has connected.
func (m *Manager) Reconnect(ctx context.Context, s machine.Spec, c links.Connection) error {
	if !s.Connected() {
		return m.networks.Reserve(s.Machine, s.Network.Ports)
	}
	err := m.networks.Restore(ctx, m.networkOf(s), c)
	if err != nil && m.hasEnded(ctx, s.Machine) {
		return nil
	}
	return err
}

// Connection returns the connection of a machine that another plugin has connected.
func (m *Manager) Connection(ctx context.Context, s machine.Spec) (links.Connection, error) {
	namespace, err := m.openLeaderNetwork(ctx, s.Machine)
	if err != nil {
		return links.Connection{}, err
	}
	defer namespace.Close()
	return m.networks.Find(namespace, m.networkOf(s))
}
