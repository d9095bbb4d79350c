package links

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv4/nclient4"
	"github.com/vishvananda/netlink"
)

const (
	// leaseTimeout limits the wait for a server. A server that first checks whether the
	// address is in use takes 3 s.
	leaseTimeout = 12 * time.Second
	// firstTry is short because the link, or the server of a new zone, is often ready a
	// moment later. Each further attempt lasts twice as long.
	firstTry = 20 * time.Millisecond
)

// lease requests an address by DHCP in the container's namespace, and assigns it for the
// time of the lease. While the plugin is not running, the lease is not renewed, and the
// container then loses the address, which the server may give to others.
func (h *Host) lease(ctx context.Context, container *space, s Spec, c Connection) (Connection, error) {
	ctx, cancel := context.WithTimeout(ctx, leaseTimeout)
	defer cancel()
	err := c.runClient(ctx, container.file, func(client *nclient4.Client) (*dhcpv4.DHCPv4, error) {
		offer, err := client.DiscoverOffer(ctx, modifiers(s.Machine)...)
		if err != nil {
			return nil, err
		}
		lease, err := client.RequestFromOffer(ctx, offer, modifiers(s.Machine)...)
		if err != nil {
			return nil, err
		}
		return lease.ACK, nil
	})
	if err != nil {
		return Connection{}, fmt.Errorf("get an address for %s by DHCP (does a server answer there? "+
			"A zone needs systemd-networkd on the host.): %w", c.Interface, err)
	}
	if err := c.checkAddress(s); err != nil {
		return Connection{}, err
	}
	return c, container.assign(c)
}

// Lease gets a new address for a container that has lost its address by DHCP.
func (h *Host) Lease(ctx context.Context, namespace *os.File, s Spec, c Connection) (Connection, error) {
	container, err := openContainer(namespace)
	if err != nil {
		return Connection{}, err
	}
	defer container.Close()
	return h.lease(ctx, container, s, c)
}

// checkAddress refuses addresses that an honest server would not assign, because any
// machine on the network may answer. In a zone, the address must belong to a network of
// the host, and must not be the host's own.
func (c Connection) checkAddress(s Spec) error {
	wrong := fmt.Errorf("accept address %s from a DHCP server on %s: it does not belong to that network", c.IPv4, s.Of)
	if !c.IPv4.Addr().IsGlobalUnicast() {
		return wrong
	}
	if s.Kind != Zone {
		return nil
	}
	bridge, err := netlink.LinkByName(c.Bridge)
	if err != nil {
		return fmt.Errorf("find bridge %s: %w", c.Bridge, err)
	}
	if !isNeighbor(bridge, c.IPv4) {
		return wrong
	}
	return nil
}

// Renew extends the lease of an address that a machine got from Connect, even one of an
// earlier plugin. It returns the new end of the lease.
func Renew(ctx context.Context, namespace *os.File, machine string, c Connection) (time.Time, error) {
	ctx, cancel := context.WithTimeout(ctx, leaseTimeout)
	defer cancel()
	had := c.IPv4
	err := c.runClient(ctx, namespace, func(client *nclient4.Client) (*dhcpv4.DHCPv4, error) {
		return confirm(ctx, client, machine, c)
	})
	if err == nil && c.IPv4 != had {
		err = fmt.Errorf("the server gives %s instead", c.IPv4)
	}
	if err == nil {
		err = extend(namespace, c)
	}
	if err != nil {
		return time.Time{}, fmt.Errorf("renew lease of %s on %s of machine %s: %w", had, c.Interface, machine, err)
	}
	return c.Expires, nil
}

func extend(namespace *os.File, c Connection) error {
	container, err := openContainer(namespace)
	if err != nil {
		return err
	}
	defer container.Close()
	return container.assign(c)
}

// confirm requests the address that the machine has from any server, as after a reboot
// (RFC 2131, 3.2). So nothing else of the lease must be stored.
func confirm(ctx context.Context, client *nclient4.Client, machine string, c Connection) (*dhcpv4.DHCPv4, error) {
	request, err := dhcpv4.New(append(modifiers(machine),
		dhcpv4.WithMessageType(dhcpv4.MessageTypeRequest), dhcpv4.WithHwAddr(c.MAC),
		dhcpv4.WithOption(dhcpv4.OptRequestedIPAddress(c.IPv4.Addr().AsSlice())))...)
	if err != nil {
		return nil, err
	}
	answer, err := client.SendAndRead(ctx, nclient4.DefaultServers, request,
		nclient4.IsMessageType(dhcpv4.MessageTypeAck, dhcpv4.MessageTypeNak))
	if err != nil {
		return nil, err
	}
	if answer.MessageType() == dhcpv4.MessageTypeNak {
		return nil, errRefused
	}
	return answer, nil
}

var errRefused = errors.New("the server refuses")

// modifiers identify the machine to the server, which then assigns it the same address
// again. They make servers answer by broadcast, because the interface does not have the
// address yet, and an ipvlan shares the MAC address of its parent.
func modifiers(machine string) []dhcpv4.Modifier {
	id := append([]byte{0}, machine...) // type 0 means that the ID is not a hardware address (RFC 2132, 9.14)
	return []dhcpv4.Modifier{
		dhcpv4.WithOption(dhcpv4.OptClientIdentifier(id)), dhcpv4.WithBroadcast(true),
		dhcpv4.WithRequestedOptions(dhcpv4.OptionSubnetMask, dhcpv4.OptionRouter, dhcpv4.OptionDomainNameServer,
			dhcpv4.OptionDomainName, dhcpv4.OptionDNSDomainSearchList),
	}
}

// runClient runs a DHCP exchange from a namespace, and stores the result of the server's
// last answer.
func (c *Connection) runClient(ctx context.Context, namespace *os.File, talk func(*nclient4.Client) (*dhcpv4.DHCPv4, error)) error {
	var ack *dhcpv4.DHCPv4
	err := within(namespace, func() error {
		client, err := nclient4.New(c.Interface, nclient4.WithTimeout(firstTry), nclient4.WithRetry(-1))
		if err != nil {
			return fmt.Errorf("open packet socket on %s: %w", c.Interface, err)
		}
		defer client.Close()
		ack, err = talk(client)
		return err
	})
	if err != nil {
		return errors.Join(err, ctx.Err())
	}
	return c.accept(ack)
}

// accept stores the content of an answer. A server may omit everything but the address.
func (c *Connection) accept(ack *dhcpv4.DHCPv4) error {
	address, ok := netip.AddrFromSlice(ack.YourIPAddr.To4())
	bits, _ := ack.SubnetMask().Size()
	if !ok || !address.IsValid() || address.IsUnspecified() || bits == 0 {
		return fmt.Errorf("accept the answer of DHCP server %s: address %s with mask %s is not usable", ack.ServerIdentifier(), ack.YourIPAddr, ack.SubnetMask())
	}
	c.IPv4 = netip.PrefixFrom(address, bits)
	c.Gateways = nil
	if routers := toAddrs(ack.Router()); len(routers) > 0 {
		c.Gateways = routers[:1]
	}
	c.Servers, c.Searches = toAddrs(ack.DNS()), nil
	if list := ack.DomainSearch(); list != nil {
		c.Searches = list.Labels
	} else if name := ack.DomainName(); name != "" {
		c.Searches = []string{name}
	}
	const shortest = 10 * time.Second // for servers that give no lease time, or a useless one
	c.Expires = time.Now().Add(max(shortest, ack.IPAddressLeaseTime(time.Hour)))
	return nil
}

func toAddrs(list []net.IP) []netip.Addr {
	var all []netip.Addr
	for _, ip := range list {
		if address, ok := netip.AddrFromSlice(ip.To4()); ok {
			all = append(all, address)
		}
	}
	return all
}

// assign sets addresses and default routes on the container's interface. The kernel
// removes addresses of a lease when it ends.
func (s *space) assign(c Connection) error {
	e, err := s.end(c.Interface)
	if err != nil {
		return err
	}
	seconds := 0
	if !c.Expires.IsZero() {
		seconds = int(max(time.Until(c.Expires), time.Second).Seconds())
	}
	for _, address := range c.addresses() {
		if err := e.addAddress(address, seconds); err != nil {
			return err
		}
	}
	for _, gateway := range c.Gateways {
		if gateway.IsValid() {
			if err := e.addDefaultRoute(gateway); err != nil {
				return err
			}
		}
	}
	return nil
}
