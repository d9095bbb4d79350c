package network

import (
	"context"
	"errors"
	"fmt"
	"os"

	"nomad-driver-nspawn/nspawn/network/links"
	"nomad-driver-nspawn/nspawn/network/ports"
)

// Spec says how a machine is connected, and which ports of the host are its own.
type Spec struct {
	links.Spec
	Mappings []ports.Mapping
	// Alive reports whether there is a machine of a name. A port of one that is gone
	// is free.
	Alive func(machine string) bool
}

// Reserve keeps the ports of the host for a machine until Remove. It returns an
// error if another program has one of them.
func (h *Host) Reserve(machine string, mappings []ports.Mapping) error {
	if h == nil || len(mappings) == 0 {
		return nil
	}
	reservation, err := ports.Reserve(mappings)
	if err != nil {
		return err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if old := h.reserved[machine]; old != nil {
		err = old.Close()
	}
	h.reserved[machine] = reservation
	return err
}

// Connect connects a machine whose payload has not begun. It returns when the
// first packet of the payload would be answered.
func (h *Host) Connect(ctx context.Context, namespace *os.File, s Spec) (links.Connection, error) {
	host, table, err := h.open()
	if err != nil {
		return links.Connection{}, fmt.Errorf("connect machine %s: %w", s.Machine, err)
	}
	c, err := host.Connect(ctx, namespace, s.Spec)
	if err != nil {
		return c, err
	}
	if err := links.Settings(namespace); err != nil {
		return c, fmt.Errorf("connect machine %s: %w", s.Machine, err)
	}
	if err := add(table, s, s.machine(c)); err != nil {
		return c, err
	}
	if err := h.openFirewalls(ctx); err != nil {
		c.Warning = errors.Join(c.Warning, fmt.Errorf("other firewalls of the host may drop packets of the machine: %w", err))
	}
	return c, nil
}

// Restore gives a machine that runs what it has by the connection, as far as it is
// missing: another plugin has made it.
func (h *Host) Restore(ctx context.Context, s Spec, c links.Connection) error {
	_, table, err := h.open()
	if err != nil {
		return err
	}
	return errors.Join(add(table, s, s.machine(c)), h.openFirewalls(ctx), h.Reserve(s.Machine, s.Mappings))
}

// machine is what the table knows of a machine.
func (s Spec) machine(c links.Connection) ports.Machine {
	m := ports.Machine{
		Name: s.Machine, IPv4: c.IPv4.Addr(), IPv6: c.IPv6.Addr(), Link: c.Link, Mappings: s.Mappings,
		Direct: s.Kind != links.Veth && s.Kind != links.Zone,
	}
	if c.Bridge != "" {
		m.Link = c.Bridge
	}
	if s.Kind == links.Zone {
		m.Port, m.MAC = c.Link, c.MAC
	}
	return m
}

// add makes a machine reachable. It takes the ports of machines that are gone.
func add(table *ports.Table, s Spec, m ports.Machine) error {
	for {
		err := table.Add(m)
		var used *ports.InUseError
		if !errors.As(err, &used) || s.Alive == nil || s.Alive(used.Owner) {
			return err
		}
		if _, err := table.Remove(used.Owner); err != nil {
			return err
		}
	}
}

// ForgetFlows ends flows to the machine's ports from before they were its own.
func (h *Host) ForgetFlows(s Spec) error {
	return ports.ForgetFlows(ports.Machine{Name: s.Machine, Mappings: s.Mappings})
}

// ConnectGuest forwards ports to a guest that configures its network itself, once
// it has an address. The address must be of a network that the host has on the
// link: a guest may give itself any.
func (h *Host) ConnectGuest(ctx context.Context, namespace *os.File, s Spec) error {
	_, table, err := h.open()
	if err != nil {
		return fmt.Errorf("connect machine %s: %w", s.Machine, err)
	}
	c, err := links.AwaitGuest(ctx, namespace, s.Spec)
	if err != nil {
		return fmt.Errorf("connect machine %s: %w", s.Machine, err)
	}
	if err := add(table, s, s.machine(c)); err != nil {
		return err
	}
	return errors.Join(h.openFirewalls(ctx), h.ForgetFlows(s))
}

// Remove removes what a machine has. It is not an error if that is nothing.
func (h *Host) Remove(ctx context.Context, machine string) error {
	if h == nil {
		return nil
	}
	_, table, err := h.open()
	if err != nil { // No machine has had anything here, on a host without nftables. Findings has the error.
		return nil
	}
	had, err := table.Remove(machine)
	if err != nil {
		return err
	}
	linked, err := links.Disconnect(machine)
	if err == nil && (had || linked) {
		err = links.RemoveEmptyZones()
	}
	if err != nil {
		return err
	}
	h.mu.Lock()
	reservation := h.reserved[machine]
	delete(h.reserved, machine)
	h.mu.Unlock()
	if reservation != nil {
		if err := reservation.Close(); err != nil {
			return err
		}
	}
	if !had {
		return nil
	}
	return h.closeFirewalls(ctx, table)
}

// Owners returns the machines that have something.
func (h *Host) Owners() ([]string, error) {
	if h == nil {
		return nil, nil
	}
	_, table, err := h.open()
	if err != nil {
		return nil, nil
	}
	forwarded, err := table.Owners()
	if err != nil {
		return nil, err
	}
	linked, err := links.Owners()
	return append(forwarded, linked...), err
}
