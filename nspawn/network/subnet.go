package network

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// guestAddress returns the address of a machine whose other end of the link has
// host: one of its addresses that fits, or else the next after the host's,
// around the end of the subnet. The two are alone in it.
func guestAddress(host netip.Prefix, has []netip.Prefix) (netip.Prefix, error) {
	fits := func(p netip.Prefix) bool { return p.Masked() == host.Masked() && p.Addr() != host.Addr() }
	if i := slices.IndexFunc(has, fits); i >= 0 {
		return has[i], nil
	}
	for _, candidate := range []netip.Addr{host.Addr().Next(), host.Masked().Addr().Next(), host.Masked().Addr()} {
		if candidate != host.Addr() && usable(host, candidate) {
			return netip.PrefixFrom(candidate, host.Bits()), nil
		}
	}
	return netip.Prefix{}, fmt.Errorf("no free address in the subnet of %s", host)
}

// usable tells whether a is an address of a host in subnet, neither the
// network's own nor broadcast. In a /31 both are usable (RFC 3021).
func usable(subnet netip.Prefix, a netip.Addr) bool {
	if !subnet.Contains(a) {
		return false
	}
	if subnet.Bits() >= 31 {
		return true
	}
	return a != subnet.Masked().Addr() && subnet.Contains(a.Next())
}

// global returns the address in an update or a listing if others can reach the
// machine by it: neither link-local nor loopback, and not one that still has to
// prove unique or has failed to.
func global(a netlink.Addr) (netip.Prefix, bool) {
	if a.IPNet == nil || a.Scope != unix.RT_SCOPE_UNIVERSE || a.Flags&(unix.IFA_F_TENTATIVE|unix.IFA_F_DADFAILED) != 0 {
		return netip.Prefix{}, false
	}
	ip, ok := netip.AddrFromSlice(a.IP)
	bits, _ := a.Mask.Size()
	ip = ip.Unmap()
	return netip.PrefixFrom(ip, bits), ok && ip.IsGlobalUnicast()
}
