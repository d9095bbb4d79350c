package ports

import (
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"

	"nomad-driver-nspawn/nspawn/network/dump"
)

// FromNomad converts the address that Nomad gives with a port to the HostIP of a mapping.
//
// Nomad gives an address even if the port has no host_network. It is an address of
// Nomad's default network, which is the interface of the default route unless the agent's
// configuration says otherwise. Such a port is meant for all addresses, as it is with
// Nomad's bridge networks (bind_wildcard_default_host_network).
func FromNomad(address netip.Addr) (netip.Addr, error) {
	if !address.IsValid() || address.IsUnspecified() {
		return netip.Addr{}, nil
	}
	address = address.Unmap()
	uplinks, err := uplinkAddresses()
	if err != nil {
		return netip.Addr{}, fmt.Errorf("check whether %s belongs to the default network: %w", address, err)
	}
	if uplinks[address] {
		return netip.Addr{}, nil
	}
	return address, nil
}

// uplinkAddresses returns the addresses of interfaces with a default route.
func uplinkAddresses() (map[netip.Addr]bool, error) {
	routes, err := dump.Complete(func() ([]netlink.Route, error) { return netlink.RouteList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	addresses, err := hostAddresses()
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	uplinks := map[netip.Addr]bool{}
	for _, route := range routes {
		if route.Dst != nil {
			if bits, _ := route.Dst.Mask.Size(); bits > 0 {
				continue
			}
		}
		for _, a := range addresses {
			if address, ok := netip.AddrFromSlice(a.IP); ok && a.LinkIndex == route.LinkIndex {
				uplinks[address.Unmap()] = true
			}
		}
	}
	return uplinks, nil
}

// hostAddresses returns the addresses of all links of the host.
func hostAddresses() ([]netlink.Addr, error) {
	return dump.Complete(func() ([]netlink.Addr, error) { return netlink.AddrList(nil, netlink.FAMILY_ALL) })
}
