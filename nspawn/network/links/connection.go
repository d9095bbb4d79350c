package links

import (
	"fmt"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"nomad-driver-nspawn/nspawn/network/dump"
)

// ReadConnection returns the connection of a network namespace that someone else has connected: of
// each address family, the first address that others can reach, and the gateways.
func ReadConnection(namespace *os.File) (c Connection, err error) {
	container, err := openContainer(namespace)
	if err != nil {
		return c, err
	}
	defer container.Close()
	return container.connection()
}

func (s *space) connection() (c Connection, err error) {
	list, err := s.addresses(nil, netlink.FAMILY_ALL)
	if err != nil {
		return c, fmt.Errorf("list addresses of a network namespace: %w", err)
	}
	for _, a := range list {
		ip, ok := netip.AddrFromSlice(a.IP)
		ip = ip.Unmap()
		bits, _ := a.Mask.Size()
		of := &c.IPv6
		if ip.Is4() {
			of = &c.IPv4
		}
		if ok && a.Scope == unix.RT_SCOPE_UNIVERSE && !ip.IsLoopback() && !of.IsValid() {
			*of = netip.PrefixFrom(ip, bits)
		}
	}
	routes, err := dump.Complete(func() ([]netlink.Route, error) { return s.RouteList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return c, fmt.Errorf("list routes of a network namespace: %w", err)
	}
	for _, route := range routes {
		isDefault := route.Dst == nil || route.Dst.IP.IsUnspecified()
		if gateway, ok := netip.AddrFromSlice(route.Gw); ok && isDefault {
			c.Gateways = append(c.Gateways, gateway.Unmap())
		}
	}
	return c, nil
}

// Find returns the connection of a machine that another plugin process has connected.
func Find(namespace *os.File, s Spec) (Connection, error) {
	container, err := openContainer(namespace)
	if err != nil {
		return Connection{}, err
	}
	defer container.Close()
	c, err := container.connection()
	if err != nil {
		return c, err
	}
	inside, err := container.end(s.interfaceName())
	if err != nil {
		return c, err
	}
	c.Interface, c.MAC = inside.name(), inside.Attrs().HardwareAddr
	switch s.Kind {
	case Zone:
		c.Bridge = zonePrefix + s.Of
	case Bridge:
		c.Bridge = s.Of
	case Veth:
	default:
		return c, nil
	}
	c.Link = LinkName(s.Machine)
	return c, nil
}

// interfaceName returns the name of the interface in the container.
func (s Spec) interfaceName() string {
	switch s.Kind {
	case Macvlan:
		return s.name(shorten("mv-" + s.Of))
	case Ipvlan:
		return s.name(shorten("iv-" + s.Of))
	case Interface:
		return s.name(s.Of)
	default:
		return s.name(guestName)
	}
}
