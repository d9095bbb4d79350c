package ports

import (
	"errors"
	"fmt"
	"net"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// openLoopback lets connections to the host's 127.0.0.1 and ::1 leave the host by the
// machine's link.
//
// The kernel drops packets of 127.0.0.0/8 on links other than lo, unless route_localnet
// is set. That also opens the other direction, which the table's guard chain closes
// again. For ::1, the kernel looks up the route of an answer by link, so the link needs a
// route to ::1. The setting and the route end with the link.
//
// A link to a shared network (Direct) is not changed. Any machine there could reach the
// host's loopback while the guard chain is missing.
func openLoopback(m Machine) error {
	if m.Direct {
		return nil
	}
	if m.IPv4.IsValid() {
		path := "/proc/sys/net/ipv4/conf/" + m.Link + "/route_localnet"
		if err := os.WriteFile(path, []byte("1"), 0o644); err != nil {
			return err
		}
	}
	if !m.IPv6.IsValid() {
		return nil
	}
	link, err := netlink.LinkByName(m.Link)
	if err != nil {
		return fmt.Errorf("find link %s: %w", m.Link, err)
	}
	const behindLo = 1024 // lo's own route has metric 0, and routes to ::1 must differ in their metric
	err = netlink.RouteAdd(&netlink.Route{
		LinkIndex: link.Attrs().Index, Table: unix.RT_TABLE_LOCAL, Type: unix.RTN_LOCAL, Priority: behindLo + link.Attrs().Index,
		Dst: &net.IPNet{IP: net.IPv6loopback, Mask: net.CIDRMask(128, 128)},
	})
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("route ::1 by %s: %w", m.Link, err)
	}
	return nil
}
