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

// Spec describes how a machine is connected, and the host's ports that it uses.
type Spec struct {
	links.Spec
	Mappings []ports.Mapping
	// Alive reports whether the named machine exists. Ports of a machine that is gone are
	// free.
	Alive func(machine string) bool
}

// Reserve keeps ports of the host for a machine until Remove. It returns an error if
// another program uses one of them.
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

// Connect connects a machine whose payload has not begun. When it returns, the payload's
// first packet will be answered.
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

// Lease gets a new address for a machine that has lost its address by DHCP.
func (h *Host) Lease(ctx context.Context, namespace *os.File, s Spec, c links.Connection) (links.Connection, error) {
	host, table, err := h.open()
	if err != nil {
		return c, err
	}
	if c, err = host.Lease(ctx, namespace, s.Spec, c); err != nil {
		return c, fmt.Errorf("connect machine %s again: %w", s.Machine, err)
	}
	if _, err := table.Remove(s.Machine); err != nil { // the entries for the previous address
		return c, err
	}
	return c, add(table, s, s.machine(c))
}

// Find returns the connection of a running machine that another plugin process has
// connected. It returns only addresses which that process has recorded in the table,
// because a machine can change its own addresses.
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

// Restore adds whatever is missing of a running machine's connection that another plugin
// process has made.
func (h *Host) Restore(ctx context.Context, s Spec, c links.Connection) error {
	_, table, err := h.open()
	if err != nil {
		return err
	}
	return errors.Join(add(table, s, s.machine(c)), h.openFirewalls(ctx), h.Reserve(s.Machine, s.Mappings))
}

// machine returns the machine's entry for the table.
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

// add adds a machine to the table. It removes machines that are gone if they have its
// ports.
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

// ForgetFlows ends flows to the machine's ports that began before the ports were its own.
func (h *Host) ForgetFlows(s Spec) error {
	return ports.ForgetFlows(ports.Machine{Name: s.Machine, Mappings: s.Mappings})
}

// ConnectGuest forwards ports to a guest that configures its own network, as soon as it
// has an address. A guest can give itself any address, so the address must belong to a
// network that the host has on the link.
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

// MakeZone creates a zone for a machine that systemd-nspawn connects.
func (h *Host) MakeZone(ctx context.Context, zone string) error {
	if _, _, err := h.open(); err != nil {
		return err
	}
	return links.MakeZone(ctx, zone)
}

// RemoveZones removes the zones that no machine uses.
func (h *Host) RemoveZones(inUse func(zone string) bool) error {
	if h == nil {
		return nil
	}
	return links.RemoveZones(inUse)
}

// Remove removes everything that belongs to the machine. It is not an error if there is
// nothing. Zones that are in use remain.
func (h *Host) Remove(ctx context.Context, machine string, inUse func(zone string) bool) error {
	if h == nil {
		return nil
	}
	if err := h.release(machine); err != nil {
		return err
	}
	table, err := h.openTable()
	if errors.Is(err, errNoTables) {
		return nil // no machine has ever been connected
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
		err = links.RemoveZones(inUse)
	}
	if err != nil {
		return err
	}
	if !had {
		return nil
	}
	return h.closeFirewalls(ctx, table)
}

// release releases the reserved ports of a machine.
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

// ReleaseAll releases the reserved ports of all machines, because another plugin process
// will reserve them now. The ports are still forwarded.
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

// Owners returns the machines that have a forwarded port or a link.
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
