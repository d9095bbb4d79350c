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
)

// space is a network namespace: the host's, or a container's.
type space struct {
	*netlink.Handle
	file *os.File // nil for the host's
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

// end is a link as seen from the namespace that it is in.
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

// addAddress gives the link an address, of IPv6 without asking others whether
// they have it: nobody else is on the link, or DHCP has asked. If seconds is not
// 0, the kernel removes the address after that time.
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

// know tells the link the MAC address of a neighbor for good.
func (e end) know(neighbor netip.Addr, mac net.HardwareAddr) error {
	n := &netlink.Neigh{
		LinkIndex: e.Attrs().Index, State: netlink.NUD_PERMANENT, IP: neighbor.AsSlice(), HardwareAddr: mac,
		Family: netlink.FAMILY_V6,
	}
	if neighbor.Is4() {
		n.Family = netlink.FAMILY_V4
	}
	if err := e.space.NeighSet(n); err != nil {
		return fmt.Errorf("tell %s the MAC address of %s: %w", e.name(), neighbor, err)
	}
	return nil
}

// routeAll sends everything else to a gateway on the link.
func (e end) routeAll(gateway netip.Addr) error {
	route := &netlink.Route{LinkIndex: e.Attrs().Index, Gw: gateway.AsSlice()}
	if err := e.space.RouteReplace(route); err != nil {
		return fmt.Errorf("route by %s to %s: %w", e.name(), gateway, err)
	}
	return nil
}

// sysctl sets a value of the host for the link, below /proc/sys/net. The kernel
// may be without IPv6.
func sysctl(path, value string) error {
	err := os.WriteFile("/proc/sys/net/"+path, []byte(value), 0o644)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

// noIPv6 keeps the host from having an address on a link that is a bridge's.
func noIPv6(link string) error {
	if err := sysctl("ipv6/conf/"+link+"/disable_ipv6", "1"); err != nil {
		return fmt.Errorf("have no IPv6 address on port %s: %w", link, err)
	}
	return nil
}

// hasIPv6 reports whether a link of the host can have an IPv6 address.
func hasIPv6(link string) bool {
	disabled, err := os.ReadFile("/proc/sys/net/ipv6/conf/" + link + "/disable_ipv6")
	return err == nil && len(disabled) > 0 && disabled[0] == '0'
}
