package host

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"

	"github.com/vishvananda/netlink"
)

// uplink is the host's end of its link. The cached roots tell networkd not to manage an
// interface of this name.
const uplink = "uplink"

// link returns the name of the caller's end.
func (r *record) link() string { return "dh-" + strconv.Itoa(r.Index) }

// subnet returns the host's /30 in 198.18.0.0/15, the range for tests of network devices
// (RFC 2544).
func (r *record) subnet() netip.Prefix {
	var a [4]byte
	binary.BigEndian.PutUint32(a[:], 198<<24|18<<16|uint32(r.Index)*4)
	return netip.PrefixFrom(netip.AddrFrom4(a), 30)
}

// callerAddr and hostAddr return the two usable addresses of the subnet.
func (r *record) callerAddr() netip.Prefix {
	return netip.PrefixFrom(r.subnet().Addr().Next(), 30)
}

func (r *record) hostAddr() netip.Prefix {
	return netip.PrefixFrom(r.callerAddr().Addr().Next(), 30)
}

func linkExists(name string) bool {
	_, err := netlink.LinkByName(name)
	return err == nil
}

// makeLink creates the pair, with the far end in the network namespace of leader, and
// brings the near end up.
func (r *record) makeLink() error {
	veth := &netlink.Veth{
		LinkAttrs:     netlink.LinkAttrs{Name: r.link()},
		PeerName:      uplink,
		PeerNamespace: netlink.NsPid(r.Leader),
	}
	if err := netlink.LinkAdd(veth); err != nil {
		return fmt.Errorf("create veth %s: %w", r.link(), err)
	}
	return configureLink(r.link(), r.callerAddr())
}

// configureLink gives an interface of the current network namespace its
// address and brings it up.
func configureLink(name string, addr netip.Prefix) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find interface %s: %w", name, err)
	}
	if err := netlink.AddrReplace(link, &netlink.Addr{IPNet: ipNet(addr)}); err != nil {
		return fmt.Errorf("add address %s to %s: %w", addr, name, err)
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("bring interface %s up: %w", name, err)
	}
	return nil
}

// configureUplink sets up the host's end. It runs in the host.
func configureUplink(addr netip.Prefix, gateway netip.Addr) error {
	if err := configureLink("lo", netip.MustParsePrefix("127.0.0.1/8")); err != nil {
		return err
	}
	if err := configureLink(uplink, addr); err != nil {
		return err
	}
	if err := netlink.RouteAdd(&netlink.Route{Gw: gateway.AsSlice()}); err != nil {
		return fmt.Errorf("add default route: %w", err)
	}
	return nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// removeLink removes the pair. It would also vanish with the host's network namespace, but
// the kernel removes that with a delay.
func removeLink(name string) error {
	link, err := netlink.LinkByName(name)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("find interface %s: %w", name, err)
	}
	err = netlink.LinkDel(link)
	if err != nil && linkExists(name) {
		return fmt.Errorf("remove interface %s: %w", name, err)
	}
	return nil
}
