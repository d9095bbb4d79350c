package links

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"

	"nomad-driver-nspawn/nspawn/network/dump"
)

// pools are the networks to choose for veth links, in order of preference. Other networks
// seldom use these ranges.
var pools = []netip.Prefix{
	netip.MustParsePrefix("10.213.0.0/16"), netip.MustParsePrefix("172.29.0.0/16"), netip.MustParsePrefix("100.117.0.0/16"),
}

// ChoosePool returns a network for veth links that the host does not route elsewhere. If
// wanted is valid, it returns wanted or an error.
func ChoosePool(wanted netip.Prefix) (netip.Prefix, error) {
	used, err := networks()
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("choose address pool: %w", err)
	}
	candidates := pools
	if wanted.IsValid() {
		candidates = []netip.Prefix{wanted.Masked()}
	}
	for _, candidate := range candidates {
		if !slices.ContainsFunc(used, candidate.Overlaps) {
			return candidate, nil
		}
	}
	return netip.Prefix{}, fmt.Errorf("choose address pool: the host routes parts of %v elsewhere; name another IPv4 network in the plugin's config", candidates)
}

// networks returns the networks that the host routes over links that are not ours.
func networks() ([]netip.Prefix, error) {
	routes, err := dump.Complete(func() ([]netlink.Route, error) { return netlink.RouteList(nil, netlink.FAMILY_V4) })
	if err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	all, err := dump.Complete(netlink.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	ours := map[int]bool{}
	for _, link := range all {
		ours[link.Attrs().Index] = strings.HasPrefix(link.Attrs().Name, Prefix)
	}
	var used []netip.Prefix
	for _, route := range routes {
		if route.Dst == nil || ours[route.LinkIndex] {
			continue
		}
		address, _ := netip.AddrFromSlice(route.Dst.IP.To4())
		if bits, _ := route.Dst.Mask.Size(); bits > 0 {
			used = append(used, netip.PrefixFrom(address, bits))
		}
	}
	return used, nil
}

// localPrefix returns the host's prefix of unique local addresses (RFC 4193).
func localPrefix(machineID string) netip.Prefix {
	hash := sha256.Sum256([]byte("nomad-driver-nspawn/" + machineID))
	address := [16]byte{0xfd}
	copy(address[1:6], hash[:])
	return netip.PrefixFrom(netip.AddrFrom16(address), 48)
}

// pair holds the addresses of both ends of a veth link.
type pair struct{ host4, container4, host6, container6 netip.Prefix }

// size returns the number of pairs in the pool.
func (h *Host) size() uint32 { return 1 << (30 - h.pool4.Bits()) }

// pair returns the pair with an index: a /30 of IPv4 and a /64 of IPv6.
func (h *Host) pair(index uint32) pair {
	four, six := h.pool4.Addr().As4(), h.pool6.Addr().As16()
	binary.BigEndian.PutUint32(four[:], binary.BigEndian.Uint32(four[:])+4*index)
	binary.BigEndian.PutUint16(six[6:], uint16(index)) // The pool has at most 1<<14 pairs.
	at := func(n byte) (netip.Prefix, netip.Prefix) {
		a4, a6 := four, six
		a4[3] += n
		a6[15] = n
		return netip.PrefixFrom(netip.AddrFrom4(a4), 30), netip.PrefixFrom(netip.AddrFrom16(a6), 64)
	}
	var p pair
	p.host4, p.host6 = at(1)
	p.container4, p.container6 = at(2)
	return p
}

// indexOf returns the index of the pair that contains an address.
func (h *Host) indexOf(address netip.Addr) (uint32, bool) {
	if !h.pool4.Contains(address) {
		return 0, false
	}
	four, base := address.As4(), h.pool4.Addr().As4()
	return (binary.BigEndian.Uint32(four[:]) - binary.BigEndian.Uint32(base[:])) / 4, true
}

var errExhausted = errors.New("every address of the pool is in use; name a larger IPv4 network in the plugin's config")

// free returns the first index that neither a link of the host nor another machine uses.
// The search begins at a hash of the machine's name, so that an address is seldom reused
// soon after it was released.
func (h *Host) free(host *space, s Spec) (uint32, error) {
	list, err := host.addresses(nil, netlink.FAMILY_V4)
	if err != nil {
		return 0, fmt.Errorf("list addresses: %w", err)
	}
	used := map[uint32]bool{}
	for _, a := range list {
		address, _ := netip.AddrFromSlice(a.IP.To4())
		if index, ok := h.indexOf(address); ok {
			used[index] = true
		}
	}
	hash := sha256.Sum256([]byte(s.Machine))
	first := binary.BigEndian.Uint32(hash[:])
	for n := range h.size() {
		index := (first + n) % h.size()
		if !used[index] && (s.Taken == nil || !s.Taken(h.pair(index).container4.Addr())) {
			return index, nil
		}
	}
	return 0, errExhausted
}
