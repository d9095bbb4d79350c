// Package ports forwards ports of the host to containers, by one nftables table
// of ours. Its rules never change: what is forwarded, and for which machine, are
// elements of maps and sets. Each carries the machine's name as comment, so that
// the table itself records what belongs to whom.
//
// The table also masquerades what containers send to the outside, and keeps them
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

// Mapping forwards a port of the host to a container, for TCP and UDP.
type Mapping struct {
	// HostIP is the only address of the host that forwards. If it is not valid
	// or unspecified, every address does, IPv4 and IPv6.
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
	// IPv4 and IPv6 are the container's addresses. One may be missing.
	IPv4, IPv6 netip.Addr
	// Link is the interface by which the host reaches the container: the host's
	// end of its veth pair, or a bridge.
	Link string
	// Direct says that the container shares a network with other machines. It
	// answers them without the host, and reaches the outside without it.
	Direct bool
	// Port is the host's end of the link if that is a port of a zone's bridge, and
	// MAC is the container's. Then it can only send under its own addresses there.
	Port     string
	MAC      net.HardwareAddr
	Mappings []Mapping
}

// rows are the elements that a machine has, by the name of the map or set.
type rows map[string][]nftables.SetElement

var protocols = []byte{unix.IPPROTO_TCP, unix.IPPROTO_UDP}

// rows translates the machine. It returns an error if an address is missing that
// a mapping needs.
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
		if !address.IsGlobalUnicast() { // as 127.0.0.1 of a DHCP server that is not to be trusted
			return nil, fmt.Errorf("address %s is not one of a machine", address)
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

// service returns a port as part of a key or value, which is padded to four
// bytes.
func service(port uint16) []byte { return append(binary.BigEndian.AppendUint16(nil, port), 0, 0) }

// port returns the host's port and protocol of an element of a map of ports, for
// messages.
func describeKey(key []byte) string {
	protocol := map[byte]string{unix.IPPROTO_TCP: "TCP", unix.IPPROTO_UDP: "UDP"}[key[0]]
	return fmt.Sprintf("%s port %d", protocol, binary.BigEndian.Uint16(key[len(key)-4:]))
}
