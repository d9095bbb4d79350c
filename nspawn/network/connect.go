package network

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"

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
	if err := h.release(machine); err != nil {
		return err
	}
	reservation, err := ports.Reserve(mappings)
	if err != nil {
		return err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.reserved[machine] = reservation
	return nil
}

// Connect connects a machine whose payload has not begun. It returns when the
// first packet of the payload would be answered.
func (h *Host) Connect(ctx context.Context, namespace *os.File, s Spec) (links.Connection, error) {
	host, table, err := h.open()
	if err != nil {
		return links.Connection{}, fmt.Errorf("connect machine %s: %w", s.Machine, err)
	}
	s.Taken = func(address netip.Addr) bool { return table.Has(address, s.Machine) }
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
	for _, finding := range h.Findings() {
		c.Warning = errors.Join(c.Warning, errors.New(finding))
	}
	return c, nil
}

// Lease gives a machine that has lost its address by DHCP another one.
func (h *Host) Lease(ctx context.Context, namespace *os.File, s Spec, c links.Connection) (links.Connection, error) {
	host, table, err := h.open()
	if err != nil {
		return c, err
	}
	if c, err = host.Lease(ctx, namespace, s.Spec, c); err != nil {
		return c, fmt.Errorf("connect machine %s again: %w", s.Machine, err)
	}
	if _, err := table.Remove(s.Machine); err != nil { // what it has by the address before
		return c, err
	}
	return c, add(table, s, s.machine(c))
}

// Find returns the connection of a machine that runs and that another plugin has
// connected. Its addresses are those that the other one has recorded: what it has by now
// is its own to say.
func (h *Host) Find(namespace *os.File, s Spec) (links.Connection, error) {
	table, err := h.openTable()
	if err != nil {
		return links.Connection{}, err
	}
	c, err := links.Find(namespace, s.Spec)
	recorded := table.Addresses(s.Machine)
	for _, has := range []*netip.Prefix{&c.IPv4, &c.IPv6} {
		if !slices.Contains(recorded, has.Addr()) {
			*has = netip.Prefix{}
		}
	}
	return c, err
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
	if err := h.release(machine); err != nil {
		return err
	}
	table, err := h.openTable()
	if errors.Is(err, errNoTables) {
		return nil // no machine has ever had anything
	}
	if err != nil {
		return err
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
	if !had {
		return nil
	}
	return h.closeFirewalls(ctx, table)
}

// release gives the ports of a machine back.
func (h *Host) release(machine string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	reservation := h.reserved[machine]
	if reservation == nil {
		return nil
	}
	delete(h.reserved, machine)
	return reservation.Close()
}

// ReleaseAll gives back the ports of all machines, which go on to be forwarded: another
// plugin reserves them now.
func (h *Host) ReleaseAll() error {
	if h == nil {
		return nil
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	var errs []error
	for _, reservation := range h.reserved {
		errs = append(errs, reservation.Close())
	}
	clear(h.reserved)
	return errors.Join(errs...)
}

// Owners returns the machines that have something.
func (h *Host) Owners() ([]string, error) {
	if h == nil {
		return nil, nil
	}
	table, err := h.openTable()
	if errors.Is(err, errNoTables) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	forwarded, err := table.Owners()
	if err != nil {
		return nil, err
	}
	linked, err := links.Owners()
	return append(forwarded, linked...), err
}
