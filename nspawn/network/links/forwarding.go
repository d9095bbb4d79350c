package links

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"nomad-driver-nspawn/nspawn/network/dump"
)

// EnableForwarding lets the host route between its links. Containers need that to reach
// other machines.
//
// A host that forwards IPv6 ignores router advertisements, unless the interface has
// accept_ra = 2. If the kernel has its default route from an advertisement,
// EnableForwarding leaves IPv6 as it is and returns a *RouterError.
func EnableForwarding() error {
	if err := sysctl("ipv4/ip_forward", "1"); err != nil {
		return fmt.Errorf("let the host forward IPv4: %w", err)
	}
	const all = "ipv6/conf/all/forwarding"
	if value, err := os.ReadFile("/proc/sys/net/" + all); err != nil || strings.TrimSpace(string(value)) == "1" {
		return nil // There is no IPv6, or the host forwards it already.
	}
	link, err := advertisingLink()
	if err != nil {
		return fmt.Errorf("let the host forward IPv6: %w", err)
	}
	if link != "" {
		return &RouterError{link}
	}
	if err := sysctl(all, "1"); err != nil {
		return fmt.Errorf("let the host forward IPv6: %w", err)
	}
	return nil
}

// RouterError reports that containers can reach other machines by IPv4 only.
type RouterError struct{ Link string }

func (e *RouterError) Error() string {
	return fmt.Sprintf("containers cannot reach other machines by IPv6: the host has its default route from an announcement on %s, "+
		"which it would lose if it forwarded; set net.ipv6.conf.%s.accept_ra=2 and net.ipv6.conf.all.forwarding=1", e.Link, e.Link)
}

// advertisingLink returns the link on which the kernel itself has learnt a default route
// from a router advertisement, or "". systemd-networkd and NetworkManager learn routes
// themselves, and turn that off in the kernel.
func advertisingLink() (string, error) {
	routes, err := dump.Complete(func() ([]netlink.Route, error) {
		return netlink.RouteListFiltered(netlink.FAMILY_V6, &netlink.Route{Protocol: unix.RTPROT_RA}, netlink.RT_FILTER_PROTOCOL)
	})
	if err != nil && !errors.Is(err, unix.EAFNOSUPPORT) {
		return "", fmt.Errorf("list routes: %w", err)
	}
	for _, route := range routes {
		link, err := netlink.LinkByIndex(route.LinkIndex)
		if err != nil {
			continue // The link is gone, and its route with it.
		}
		name := link.Attrs().Name
		accept, err := os.ReadFile("/proc/sys/net/ipv6/conf/" + name + "/accept_ra")
		isDefault := route.Dst == nil || route.Dst.IP.IsUnspecified()
		if err == nil && isDefault && strings.TrimSpace(string(accept)) == "1" {
			return name, nil
		}
	}
	return "", nil
}
