// Package links connects containers to networks from outside. It creates a link directly
// in the container's network namespace, sets an address and a route, and returns when the
// first packet would be answered. Nothing of this runs in the container, and
// systemd-nspawn needs only --private-network.
//
// The name of a link's host end is a hash of the machine's name; its alias is the full
// name. So no record is needed beside the kernel's.
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

	"nomad-driver-nspawn/nspawn/network/dump"
)

// Kind selects how a container is connected.
type Kind string

// The kinds of connections, with what each uses on the host.
const (
	Veth      Kind = "veth"      // a network that only the host and the container share
	Zone      Kind = "zone"      // a bridge as systemd-nspawn makes them, configured by systemd-networkd
	Bridge    Kind = "bridge"    // a bridge of the operator
	Macvlan   Kind = "macvlan"   // an interface of the host, with a MAC address of its own
	Ipvlan    Kind = "ipvlan"    // an interface of the host, with the same MAC address
	Interface Kind = "interface" // an interface that is moved from the host to the container
)

// Spec describes the connection of a machine.
type Spec struct {
	Machine string
	Kind    Kind
	Of      string // the zone, bridge or interface; not for Veth
	Name    string // name of the interface in the container; "" selects systemd-nspawn's name
	// Address and Gateway are static. Without them, a veth link gets addresses from the
	// pool, and other links use DHCP.
	Address netip.Prefix
	Gateway netip.Addr
	// Taken reports whether an address of the pool still belongs to another machine, even
	// to one whose link is gone. It may be nil.
	Taken func(netip.Addr) bool
}

// Connection describes how a container is connected.
type Connection struct {
	Interface string // name of the interface in the container
	// Link is the host's end, and Bridge is the bridge that has it as a port. The host
	// reaches the container through Bridge if it is set, and otherwise through Link.
	// Other kinds have neither.
	Link, Bridge string
	MAC          net.HardwareAddr // MAC address in the container
	IPv4, IPv6   netip.Prefix
	Gateways     []netip.Addr // for IPv4 and IPv6, as far as there are addresses
	// Servers and Searches are the name servers and search domains that DHCP has given.
	// Expires is the end of the lease; it is zero for static addresses.
	Servers  []netip.Addr
	Searches []string
	Expires  time.Time
	// Warning says why the connection may not work. It becomes an event of the task.
	Warning error
}

// Host makes links on this host.
type Host struct {
	pool4, pool6 netip.Prefix
	machineID    string
	mu           sync.Mutex // held between choosing an address and assigning it
}

// New returns a Host. Its veth links get IPv4 addresses from pool, and IPv6 addresses
// from a range that is derived from the host's machine ID.
func New(pool netip.Prefix, machineID string) (*Host, error) {
	if !pool.IsValid() || !pool.Addr().Is4() || pool.Bits() > 30 || pool.Bits() < 16 {
		return nil, fmt.Errorf("use address pool %s: want an IPv4 network of /16 to /30", pool)
	}
	return &Host{pool4: pool.Masked(), pool6: localPrefix(machineID), machineID: machineID}, nil
}

// Prefix begins the name of each link on the host.
const Prefix = "nv-"

// LinkName returns the name of the host's end of a machine's link. It contains 60 bits of
// a hash, in 12 characters of base 32, which is enough that 500 tasks do not collide.
func LinkName(machine string) string {
	hash := sha256.Sum256([]byte(machine))
	return Prefix + strings.ToLower(base32.StdEncoding.EncodeToString(hash[:10])[:12])
}

// mac returns the MAC address for an end of a machine's link. It is the same after a
// restart. Without a fixed address, udev would change the link's address a moment later.
func (h *Host) mac(machine, end string) net.HardwareAddr {
	hash := sha256.Sum256([]byte(h.machineID + "/" + machine + "/" + end))
	address := net.HardwareAddr(hash[:6])
	address[0] = address[0]&^1 | 2 // individual (not multicast), locally administered
	return address
}

// Connect connects the container with the given network namespace. It first removes the
// link of an earlier machine of the same name. After an error, Disconnect removes what
// Connect has made.
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

// Disconnect removes a machine's link from the host, and reports whether there was one.
// The link may have ended already, with the container's namespace, as links that are made
// in the namespace itself always do.
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
		err = host.remove(link)
	}
	if err != nil {
		return false, fmt.Errorf("disconnect machine %s: delete link %s: %w", machine, LinkName(machine), err)
	}
	return true, nil
}

// Owners returns the machines that have a link on the host, sorted.
func Owners() ([]string, error) {
	all, err := dump.Complete(netlink.LinkList)
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
