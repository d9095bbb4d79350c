package host

import (
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"strconv"

	"github.com/vishvananda/netlink"
)

// lan is the host's end of its link to a LAN. Hosts share a LAN as machines share a
// switch. The machine itself has no address in it.
const lan = "lan0"

// validLAN limits the length of the name of the bridge that is the switch.
var validLAN = regexp.MustCompile(`^[a-z0-9]{1,10}$`)

// bridge names the switch, and port the machine's end of the host's link.
func (r *record) bridge() string { return "dhb-" + r.LAN }

func (r *record) port() string { return "dhp-" + strconv.Itoa(r.Index) }

// lanAddrs are the host's addresses in its LAN, of the ranges that are set aside
// for documentation (RFC 5737) and for local use (RFC 4193).
func (r *record) lanAddrs() []netip.Prefix {
	if r.LAN == "" {
		return nil
	}
	n := byte(r.Index + 1) // A machine has far fewer than 254 hosts.
	six := netip.MustParseAddr("fd00:198:51:100::").As16()
	six[15] = n
	return []netip.Prefix{
		netip.PrefixFrom(netip.AddrFrom4([4]byte{198, 51, 100, n}), 24),
		netip.PrefixFrom(netip.AddrFrom16(six), 64),
	}
}

// joinLAN creates the host's link, and the bridge if this is the first host of the LAN. It
// locks the registry, because the last host removes the bridge.
func (r *record) joinLAN() error {
	if r.LAN == "" {
		return nil
	}
	registry, err := lockRegistry()
	if err != nil {
		return err
	}
	defer registry.Close()
	bridge, err := netlink.LinkByName(r.bridge())
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: r.bridge()}}); err != nil {
			return fmt.Errorf("create bridge %s: %w", r.bridge(), err)
		}
		bridge, err = netlink.LinkByName(r.bridge())
	}
	if err != nil {
		return fmt.Errorf("find bridge %s: %w", r.bridge(), err)
	}
	if err := netlink.LinkSetUp(bridge); err != nil {
		return fmt.Errorf("bring bridge %s up: %w", r.bridge(), err)
	}
	port := &netlink.Veth{
		LinkAttrs:     netlink.LinkAttrs{Name: r.port(), MasterIndex: bridge.Attrs().Index},
		PeerName:      lan,
		PeerNamespace: netlink.NsPid(r.Leader),
	}
	if err := netlink.LinkAdd(port); err != nil {
		return fmt.Errorf("create veth %s: %w", r.port(), err)
	}
	if err := netlink.LinkSetUp(port); err != nil {
		return fmt.Errorf("bring interface %s up: %w", r.port(), err)
	}
	return nil
}

// leaveLAN removes the host's link.
func (r *record) leaveLAN() error {
	if r.LAN == "" {
		return nil
	}
	return removeLink(r.port())
}

// removeEmptyLAN removes the bridge unless other hosts are on it. The registry
// must be locked.
func (r *record) removeEmptyLAN() error {
	if r.LAN == "" || !linkExists(r.bridge()) {
		return nil
	}
	bridge, err := netlink.LinkByName(r.bridge())
	if err != nil {
		return fmt.Errorf("find bridge %s: %w", r.bridge(), err)
	}
	links, err := netlink.LinkList()
	if err != nil {
		return fmt.Errorf("list interfaces: %w", err)
	}
	for _, link := range links {
		if link.Attrs().MasterIndex == bridge.Attrs().Index {
			return nil
		}
	}
	return removeLink(r.bridge())
}

// configureLAN sets up the host's end. It runs in the host.
func configureLAN(addrs []netip.Prefix) error {
	for _, addr := range addrs {
		if err := configureLink(lan, addr); err != nil {
			return err
		}
	}
	return nil
}
