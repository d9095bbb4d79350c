// Package links connects containers to networks from outside: it makes the link,
// straight into the container's network namespace, gives it an address and a
// route, and returns when the first packet would be answered. The container runs
// nothing of this, and systemd-nspawn needs no more than --private-network.
//
// The host's end of a link is named by a hash of the machine's name, which its
// alias holds in full. So the kernel is the record of what there is.
package links

import (
	"context"
	"crypto/sha256"
	"encoding/base32"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Kind says how a container is connected.
type Kind string

// The kinds of connections, by what they need on the host.
const (
	Veth      Kind = "veth"      // a network of its own with the host
	Zone      Kind = "zone"      // a bridge of systemd-nspawn's, which systemd-networkd configures
	Bridge    Kind = "bridge"    // a bridge of the operator's
	Macvlan   Kind = "macvlan"   // an interface of the host, with a MAC address of its own
	Ipvlan    Kind = "ipvlan"    // an interface of the host, with its MAC address
	Interface Kind = "interface" // an interface that is taken from the host
)

// Spec says how to connect a machine.
type Spec struct {
	Machine string
	Kind    Kind
	Of      string // the zone, bridge or interface; not for Veth
	Name    string // of the interface in the container; "" is what systemd-nspawn calls it
	// Address and Gateway are static. Without them a veth link gets addresses of
	// the pool, and others ask by DHCP.
	Address netip.Prefix
	Gateway netip.Addr
	// Taken reports whether an address of the pool still belongs to another machine,
	// also to one whose link is gone. It may be nil.
	Taken func(netip.Addr) bool
}

// Connection is how a container is connected.
type Connection struct {
	Interface string // in the container
	// Link is the host's end, Bridge what it is a port of. The host reaches the
	// container by Bridge, or else by Link. With other kinds there is neither.
	Link, Bridge string
	MAC          net.HardwareAddr // in the container
	IPv4, IPv6   netip.Prefix
	Gateways     []netip.Addr // of IPv4 and IPv6, as far as there are addresses
	// Servers and Searches are what DHCP says about names, and Expires is when
	// the lease ends; it is zero for static addresses.
	Servers  []netip.Addr
	Searches []string
	Expires  time.Time
	// Warning says why the connection may not work. It is for an event.
	Warning error
}

// Host makes links on this host.
type Host struct {
	pool4, pool6 netip.Prefix
	machineID    string
	mu           sync.Mutex // between choosing an address and having it
}

// New returns a Host whose veth links get their IPv4 addresses from pool, and
// their IPv6 addresses from a range that follows from the host's machine ID.
func New(pool netip.Prefix, machineID string) (*Host, error) {
	if !pool.IsValid() || !pool.Addr().Is4() || pool.Bits() > 30 || pool.Bits() < 16 {
		return nil, fmt.Errorf("use address pool %s: want an IPv4 network of /16 to /30", pool)
	}
	return &Host{pool4: pool.Masked(), pool6: localPrefix(machineID), machineID: machineID}, nil
}

// Prefix begins the name of each link on the host.
const Prefix = "nv-"

// LinkName returns the name of the host's end of a machine's link. Base 32 of 60
// bits makes 12 characters, so that 500 tasks do not collide.
func LinkName(machine string) string {
	hash := sha256.Sum256([]byte(machine))
	return Prefix + strings.ToLower(base32.StdEncoding.EncodeToString(hash[:10])[:12])
}

// mac returns the MAC address of an end of a machine's link, which is the same
// after a restart. Without it udev would give the link another one a moment later.
func (h *Host) mac(machine, end string) net.HardwareAddr {
	hash := sha256.Sum256([]byte(h.machineID + "/" + machine + "/" + end))
	address := net.HardwareAddr(hash[:6])
	address[0] = address[0]&^1 | 2 // for one station, locally administered
	return address
}

// Connect connects the container whose network namespace is given. What an
// earlier machine of the same name left is removed before. After an error,
// Disconnect removes what was made.
func (h *Host) Connect(ctx context.Context, namespace *os.File, s Spec) (Connection, error) {
	c, err := h.connect(ctx, namespace, s)
	if err != nil {
		return Connection{}, fmt.Errorf("connect machine %s by %s: %w", s.Machine, strings.TrimSpace(string(s.Kind)+" "+s.Of), err)
	}
	return c, nil
}

func (h *Host) connect(ctx context.Context, namespace *os.File, s Spec) (Connection, error) {
	host, err := openHost()
	if err != nil {
		return Connection{}, err
	}
	defer host.Close()
	container, err := openContainer(namespace)
	if err != nil {
		return Connection{}, err
	}
	defer container.Close()
	if s.Kind == Veth {
		return h.connectVeth(ctx, host, container, s)
	}
	c, err := h.attach(ctx, host, container, s)
	if err != nil {
		return Connection{}, err
	}
	inside, err := container.end(c.Interface)
	if err != nil {
		return Connection{}, err
	}
	if err := inside.up(); err != nil {
		return Connection{}, err
	}
	if !s.Address.IsValid() {
		return h.lease(ctx, container, s, c)
	}
	c.IPv4, c.Gateways = s.Address, []netip.Addr{s.Gateway}
	return c, container.assign(c)
}

// Disconnect removes the link that a machine has on the host, and reports whether
// there was one. It may have ended before, with the container's namespace; links into
// the namespace itself always do.
func Disconnect(machine string) (had bool, err error) {
	host, err := openHost()
	if err != nil {
		return false, err
	}
	defer host.Close()
	link, err := host.LinkByName(LinkName(machine))
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return false, nil
	}
	if err == nil {
		err = host.LinkDel(link)
	}
	if err != nil && !errors.Is(err, unix.ENODEV) {
		return false, fmt.Errorf("disconnect machine %s: delete link %s: %w", machine, LinkName(machine), err)
	}
	return true, nil
}

// Owners returns the machines that have a link on the host.
func Owners() ([]string, error) {
	all, err := netlink.LinkList()
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	var owners []string
	for _, link := range all {
		if a := link.Attrs(); strings.HasPrefix(a.Name, Prefix) && a.Name == LinkName(a.Alias) {
			owners = append(owners, a.Alias)
		}
	}
	slices.Sort(owners)
	return owners, nil
}
