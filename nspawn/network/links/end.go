package links

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"nomad-driver-nspawn/nspawn/network/dump"
)

// space is a network namespace, either the host's or a container's.
type space struct {
	*netlink.Handle
	file *os.File // nil for the host
}

func openHost() (*space, error) {
	handle, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open netlink: %w", err)
	}
	return &space{Handle: handle}, nil
}

func openContainer(namespace *os.File) (*space, error) {
	handle, err := netlink.NewHandleAt(netns.NsHandle(namespace.Fd()), unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("enter network namespace: %w", err)
	}
	return &space{Handle: handle, file: namespace}, nil
}

// remove removes a link, unless it has gone since it was found: a link also ends with the
// network namespace of either end, and others remove links, too.
func (s *space) remove(link netlink.Link) error {
	if err := s.LinkDel(link); err != nil && !errors.Is(err, unix.ENODEV) {
		return err
	}
	return nil
}

// addresses returns the addresses of a link, or of all links if link is nil.
func (s *space) addresses(link netlink.Link, family int) ([]netlink.Addr, error) {
	return dump.Complete(func() ([]netlink.Addr, error) { return s.AddrList(link, family) })
}

// end is one end of a link, seen from the namespace that contains it.
type end struct {
	space *space
	netlink.Link
}

func (s *space) end(name string) (end, error) {
	link, err := s.LinkByName(name)
	if err != nil {
		return end{}, fmt.Errorf("find link %s: %w", name, err)
	}
	return end{s, link}, nil
}

func (e end) name() string { return e.Attrs().Name }

func (e end) up() error {
	if err := e.space.LinkSetUp(e.Link); err != nil {
		return fmt.Errorf("bring up %s: %w", e.name(), err)
	}
	return nil
}

// addAddress adds an address to the link. IPv6 duplicate address detection is off: no
// other machine is on the link, or DHCP has checked the address. If seconds is not 0, the
// kernel removes the address after that time.
func (e end) addAddress(address netip.Prefix, seconds int) error {
	a := &netlink.Addr{
		IPNet:    &net.IPNet{IP: address.Addr().AsSlice(), Mask: net.CIDRMask(address.Bits(), address.Addr().BitLen())},
		ValidLft: seconds, PreferedLft: seconds,
	}
	if address.Addr().Is6() {
		a.Flags = unix.IFA_F_NODAD
	}
	if err := e.space.AddrReplace(e.Link, a); err != nil {
		return fmt.Errorf("give %s address %s: %w", e.name(), address, err)
	}
	return nil
}

// addNeighbor adds a permanent entry with a neighbor's MAC address.
func (e end) addNeighbor(neighbor netip.Addr, mac net.HardwareAddr) error {
	n := &netlink.Neigh{
		LinkIndex: e.Attrs().Index, State: netlink.NUD_PERMANENT, IP: neighbor.AsSlice(), HardwareAddr: mac,
		Family: netlink.FAMILY_V6,
	}
	if neighbor.Is4() {
		n.Family = netlink.FAMILY_V4
	}
	if err := e.space.NeighSet(n); err != nil {
		return fmt.Errorf("set the MAC address of neighbor %[2]s on %[1]s: %[3]w", e.name(), neighbor, err)
	}
	return nil
}

// addDefaultRoute adds a default route by a gateway on the link.
func (e end) addDefaultRoute(gateway netip.Addr) error {
	route := &netlink.Route{LinkIndex: e.Attrs().Index, Gw: gateway.AsSlice()}
	if err := e.space.RouteReplace(route); err != nil {
		return fmt.Errorf("route by %s to %s: %w", e.name(), gateway, err)
	}
	return nil
}

// sysctl writes a setting below /proc/sys/net of the host. It ignores settings that do
// not exist, because the kernel may have no IPv6.
func sysctl(path, value string) error {
	err := os.WriteFile("/proc/sys/net/"+path, []byte(value), 0o644)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

// noIPv6 prevents the host from having an IPv6 address on the port of a bridge.
func noIPv6(link string) error {
	if err := sysctl("ipv6/conf/"+link+"/disable_ipv6", "1"); err != nil {
		return fmt.Errorf("disable IPv6 on port %s: %w", link, err)
	}
	return nil
}

// hasIPv6 reports whether a link of the host can have IPv6 addresses.
func hasIPv6(link string) bool {
	disabled, err := os.ReadFile("/proc/sys/net/ipv6/conf/" + link + "/disable_ipv6")
	return err == nil && len(disabled) > 0 && disabled[0] == '0'
}
