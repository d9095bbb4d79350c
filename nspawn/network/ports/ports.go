// Package ports forwards ports of the host to containers, with an nftables table of its
// own. The rules of the table never change. The forwarded ports and their machines are
// elements of maps and sets. Each element has the machine's name as its comment, so the
// table itself records which machine it belongs to.
//
// The table also masquerades packets of containers to the outside, and keeps containers
// from the host's loopback and from each other's addresses.
package ports

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"
)

// Mapping forwards a port of the host, TCP and UDP, to a container.
type Mapping struct {
	// HostIP is the host's address whose port is forwarded. If it is invalid or
	// unspecified, the port of every address is forwarded, IPv4 and IPv6.
	HostIP    netip.Addr
	Host      uint16
	Container uint16
}

func (m Mapping) String() string {
	if m.any() {
		return fmt.Sprint("port ", m.Host)
	}
	return fmt.Sprint("port ", m.Host, " of ", m.HostIP)
}

func (m Mapping) any() bool { return !m.HostIP.IsValid() || m.HostIP.IsUnspecified() }

// Machine is a container on a network of the host.
type Machine struct {
	Name string
	// IPv4 and IPv6 are the container's addresses. One of them may be missing.
	IPv4, IPv6 netip.Addr
	// Link is the interface by which the host reaches the container: the host's end of
	// its veth pair, or a bridge.
	Link string
	// Direct means that the container shares a network with other machines. They exchange
	// packets, also with the outside, without the host.
	Direct bool
	// Port is the host's end of the link if it is a port of a zone's bridge, and MAC is
	// the container's MAC address. The container can then only send from its own
	// addresses.
	Port     string
	MAC      net.HardwareAddr
	Mappings []Mapping
}

// rows holds the elements of a machine by the name of their map or set.
type rows map[string][]nftables.SetElement

var protocols = []byte{unix.IPPROTO_TCP, unix.IPPROTO_UDP}

// rows returns the machine's elements. It returns an error if the machine lacks an
// address that a mapping needs.
func (m Machine) rows() (rows, error) {
	r := rows{}
	add := func(set string, key, value []byte) {
		r[set] = append(r[set], nftables.SetElement{Key: key, Val: value, Comment: m.Name})
	}
	for _, f := range families {
		address := f.addressOf(m)
		if !address.IsValid() {
			continue
		}
		if !address.IsGlobalUnicast() { // for example 127.0.0.1 from a malicious DHCP server
			return nil, fmt.Errorf("a machine cannot have address %s", address)
		}
		guest := address.AsSlice()
		if m.Direct {
			add(f.direct, guest, nil)
		} else {
			add(f.machines, guest, nil)
		}
		add(f.self, append(address.AsSlice(), guest...), nil)
	}
	if m.Port != "" {
		if len(m.MAC) != 6 {
			return nil, fmt.Errorf("guard link %s: MAC address %q is not usable", m.Port, m.MAC)
		}
		m.addPort(add)
	}
	for _, mapping := range m.Mappings {
		if err := m.addMapping(mapping, add); err != nil {
			return nil, err
		}
	}
	return r, nil
}

func (m Machine) addMapping(mapping Mapping, add func(set string, key, value []byte)) error {
	forwarded := false
	for _, f := range families {
		address, host := f.addressOf(m), mapping.HostIP.Unmap()
		if !address.IsValid() || !mapping.any() && host.Is4() != address.Is4() {
			continue
		}
		forwarded = true
		value := append(address.AsSlice(), service(mapping.Container)...)
		for _, protocol := range protocols {
			key := []byte{protocol, 0, 0, 0}
			if mapping.any() {
				add(f.anywhere, append(key, service(mapping.Host)...), value)
				continue
			}
			key = append(key, host.AsSlice()...)
			add(f.ports, append(key, service(mapping.Host)...), value)
		}
	}
	if !forwarded {
		return fmt.Errorf("forward %s: the container has no address of that family", mapping)
	}
	return nil
}

// service encodes a port as part of a key or value, padded to four bytes.
func service(port uint16) []byte { return append(binary.BigEndian.AppendUint16(nil, port), 0, 0) }

// describeKey returns the protocol and host port of a key in a map of ports, for
// messages.
func describeKey(key []byte) string {
	protocol := map[byte]string{unix.IPPROTO_TCP: "TCP", unix.IPPROTO_UDP: "UDP"}[key[0]]
	return fmt.Sprintf("%s port %d", protocol, binary.BigEndian.Uint16(key[len(key)-4:]))
}
