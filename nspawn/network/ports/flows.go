package ports

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"nomad-driver-nspawn/nspawn/network/dump"
)

// ForgetFlows ends UDP flows to the machine's host ports that began before Add. NAT
// decides once per flow, so a client that has sent packets before the port was forwarded
// would never reach the machine.
//
// The kernel walks its whole connection table for this, which takes 10 ms or more. The
// machine's start need not wait for it.
func ForgetFlows(m Machine) error {
	if len(m.Mappings) == 0 {
		return nil
	}
	list, err := hostAddresses()
	if err != nil {
		return fmt.Errorf("list addresses of the host: %w", err)
	}
	return deleteFlows(func(flow *netlink.ConntrackFlow) bool {
		to := flow.Forward
		return to.Protocol == unix.IPPROTO_UDP && flow.Reverse.SrcIP.Equal(to.DstIP) && // not forwarded
			slices.ContainsFunc(m.Mappings, func(mapping Mapping) bool { return mapping.Host == to.DstPort }) &&
			slices.ContainsFunc(list, func(a netlink.Addr) bool { return a.IP.Equal(to.DstIP) })
	})
}

// endFlows ends the flows that were forwarded to a machine. A flow continues after its
// port is no longer forwarded, and another machine may get the address next.
func endFlows(r rows) error {
	forwards := func(f family) bool { return len(r[f.ports])+len(r[f.anywhere]) > 0 }
	if !slices.ContainsFunc(families, forwards) {
		return nil
	}
	gone := map[netip.Addr]bool{}
	for _, address := range r.addresses() {
		gone[address] = true
	}
	return deleteFlows(func(flow *netlink.ConntrackFlow) bool {
		address, _ := netip.AddrFromSlice(flow.Reverse.SrcIP)
		return gone[address.Unmap()]
	})
}

// flowFilter selects connections in the kernel's table.
type flowFilter func(*netlink.ConntrackFlow) bool

// MatchConntrackFlow implements netlink.CustomConntrackFilter.
func (f flowFilter) MatchConntrackFlow(flow *netlink.ConntrackFlow) bool { return f(flow) }

func deleteFlows(filter flowFilter) error {
	for _, family := range []netlink.InetFamily{unix.AF_INET, unix.AF_INET6} {
		_, err := dump.Complete(func() (uint, error) {
			return netlink.ConntrackDeleteFilters(netlink.ConntrackTable, family, filter)
		})
		if err != nil {
			return fmt.Errorf("delete connections: %w", err)
		}
	}
	return nil
}
