package links

import (
	"context"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
)

// guestName is systemd-nspawn's name for the container's end of a veth link.
const guestName = "host0"

// connectVeth makes a veth link with static addresses on both ends.
//
// The order matters. Ends that have just been brought up drop packets for a moment, and a
// lost ARP request would cost a second. So both ends get each other's MAC address. Then
// an answer of the container's kernel to an echo request shows that packets pass.
func (h *Host) connectVeth(ctx context.Context, host, container *space, s Spec) (Connection, error) {
	outside, addresses, err := h.makeVeth(host, container, s)
	if err != nil {
		return Connection{}, err
	}
	c := Connection{
		Interface: s.interfaceName(), Link: outside.name(), MAC: h.mac(s.Machine, containerEnd),
		IPv4: addresses.container4, Gateways: []netip.Addr{addresses.host4.Addr()},
	}
	if hasIPv6(c.Link) {
		c.IPv6 = addresses.container6
		c.Gateways = append(c.Gateways, addresses.host6.Addr())
		if err := outside.addAddress(addresses.host6, 0); err != nil {
			return Connection{}, err
		}
	}
	inside, err := container.end(c.Interface)
	if err != nil {
		return Connection{}, err
	}
	if err := h.bringUp(outside, inside, c, s); err != nil {
		return Connection{}, err
	}
	c.Warning = awaitEcho(ctx, c)
	return c, ctx.Err()
}

func (h *Host) bringUp(outside, inside end, c Connection, s Spec) error {
	if err := inside.addAddresses(c); err != nil {
		return err
	}
	for _, e := range []end{outside, inside} {
		if err := e.up(); err != nil {
			return err
		}
	}
	for _, address := range c.addresses() {
		if err := outside.addNeighbor(address.Addr(), c.MAC); err != nil {
			return err
		}
	}
	for _, gateway := range c.Gateways {
		if err := inside.addNeighbor(gateway, h.mac(s.Machine, hostEnd)); err != nil {
			return err
		}
		if err := inside.addDefaultRoute(gateway); err != nil {
			return err
		}
	}
	return nil
}

// hostEnd and containerEnd name the ends of a link, see mac.
const hostEnd, containerEnd = "host", "container"

// makeVeth makes a link and gives its host end an IPv4 address that no other link has.
func (h *Host) makeVeth(host, container *space, s Spec) (end, pair, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	index, err := h.free(host, s)
	if err != nil {
		return end{}, pair{}, err
	}
	outside, err := h.makePair(host, container, s)
	if err != nil {
		return end{}, pair{}, err
	}
	addresses := h.pair(index)
	return outside, addresses, outside.addAddress(addresses.host4, 0)
}

// makePair makes a veth link into the container. The host ignores router advertisements
// and redirects of the container on it.
func (h *Host) makePair(host, container *space, s Spec) (end, error) {
	name := LinkName(s.Machine)
	if old, err := host.LinkByName(name); err == nil { // an earlier machine's, whose removal is not finished
		if err := host.remove(old); err != nil {
			return end{}, fmt.Errorf("delete link %s of an earlier machine: %w", name, err)
		}
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.HardwareAddr = name, h.mac(s.Machine, hostEnd)
	err := host.LinkAdd(&netlink.Veth{
		LinkAttrs: attrs, PeerName: s.interfaceName(), PeerHardwareAddr: h.mac(s.Machine, containerEnd),
		PeerNamespace: netlink.NsFd(container.file.Fd()),
	})
	if err != nil {
		return end{}, fmt.Errorf("create veth link %s to %s: %w", name, s.interfaceName(), err)
	}
	outside, err := host.end(name)
	if err != nil {
		return end{}, err
	}
	if err := host.LinkSetAlias(outside.Link, s.Machine); err != nil {
		return end{}, fmt.Errorf("name link %s after its machine: %w", name, err)
	}
	for _, key := range []string{"accept_ra", "accept_redirects"} {
		if err := sysctl("ipv6/conf/"+name+"/"+key, "0"); err != nil {
			return end{}, fmt.Errorf("protect link %s: %w", name, err)
		}
	}
	return outside, nil
}

// name returns the name of the interface in the container, or usual if the job sets none.
func (s Spec) name(usual string) string {
	if s.Name != "" {
		return s.Name
	}
	return usual
}

func (c Connection) addresses() []netip.Prefix {
	var all []netip.Prefix
	for _, address := range []netip.Prefix{c.IPv4, c.IPv6} {
		if address.IsValid() {
			all = append(all, address)
		}
	}
	return all
}

func (e end) addAddresses(c Connection) error {
	for _, address := range c.addresses() {
		if err := e.addAddress(address, 0); err != nil {
			return err
		}
	}
	return nil
}
