package ports

import (
	"net"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// bridgeTable is the table of family bridge. It prevents containers on ports of one
// bridge from taking over each other's addresses, because that happens below the host's
// routing.
var bridgeTable = &nftables.Table{Name: TableName, Family: nftables.TableFamilyBridge}

// Sets of the bridge table. The rules apply only to links in members.
const (
	members  = "members"  // names of the links
	macs     = "macs"     // pairs of a link and the container's MAC address
	sources4 = "sources4" // pairs of a link and an address that the container may use
	sources6 = "sources6"
)

func bridgeSets() []*nftables.Set {
	concat := func(name string, address nftables.SetDatatype) *nftables.Set {
		key := nftables.MustConcatSetType(nftables.TypeIFName, address)
		return &nftables.Set{Table: bridgeTable, Name: name, Concatenation: true, KeyType: key}
	}
	return []*nftables.Set{
		{Table: bridgeTable, Name: members, KeyType: nftables.TypeIFName},
		concat(macs, nftables.TypeEtherAddr), concat(sources4, nftables.TypeIPAddr), concat(sources6, nftables.TypeIP6Addr),
	}
}

// addPort adds the rows of a container that is connected to a port of a bridge.
func (m Machine) addPort(add func(set string, key, value []byte)) {
	link := make([]byte, unix.IFNAMSIZ)
	copy(link, m.Port)
	with := func(address []byte) []byte { return append(append([]byte(nil), link...), address...) }
	add(members, link, nil)
	add(macs, with(append(append([]byte(nil), m.MAC...), 0, 0)), nil)
	add(sources6, with(linkLocal(m.MAC).AsSlice()), nil)
	if m.IPv4.IsValid() {
		add(sources4, with(m.IPv4.AsSlice()), nil)
	}
	if m.IPv6.IsValid() {
		add(sources6, with(m.IPv6.AsSlice()), nil)
	}
}

// linkLocal returns the address that the kernel derives from a link's MAC address (RFC
// 4291, appendix A).
func linkLocal(mac net.HardwareAddr) netip.Addr {
	address := [16]byte{0xfe, 0x80}
	copy(address[8:], []byte{mac[0] ^ 2, mac[1], mac[2], 0xff, 0xfe, mac[3], mac[4], mac[5]})
	return netip.AddrFrom16(address)
}

func bridgeChains() []chain {
	priority := nftables.ChainPriority(-300)
	guard := &nftables.Chain{
		Table: bridgeTable, Name: "guard", Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookPrerouting, Priority: &priority,
	}
	return []chain{{guard, bridgeRules()}}
}

// Types of Ethernet frames (linux/if_ether.h).
const frameIPv4, frameARP, frameIPv6 = 0x0800, 0x0806, 0x86dd

// bridgeRules returns rules that accept packets with the container's own addresses, and
// the packets that it needs to get an address. They drop everything else: forged
// addresses, router advertisements, DHCP answers, and protocols of bridges.
func bridgeRules() [][]expr.Any {
	accept, drop := &expr.Verdict{Kind: expr.VerdictAccept}, &expr.Verdict{Kind: expr.VerdictDrop}
	const second = register4 + unix.IFNAMSIZ/4 // the register after the one with the link's name
	link := &expr.Meta{Key: expr.MetaKeyIIFNAME, Register: register}
	not := func(set string) expr.Any { return &expr.Lookup{SourceRegister: register, SetName: set, Invert: true} }
	frame := func(kind uint16, parts ...expr.Any) []expr.Any {
		return append([]expr.Any{
			&expr.Payload{DestRegister: register, Base: expr.PayloadBaseLLHeader, Offset: 12, Len: 2},
			equal(binaryutil.BigEndian.PutUint16(kind)),
		}, parts...)
	}
	transport := func(protocol byte, offset, length uint32, value ...byte) []expr.Any {
		return []expr.Any{
			&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: register}, equal([]byte{protocol}),
			&expr.Payload{DestRegister: register, Base: expr.PayloadBaseTransportHeader, Offset: offset, Len: length}, equal(value),
		}
	}
	const senderIP, source4, source6 = 14, 12, 8 // offsets in the network header
	const advertisement, router, redirect = 136, 134, 137
	v4, v6 := []byte{0, 0, 0, 0}, make([]byte, 16)
	dhcp := frame(frameIPv4, load(source4, register, 4), equal(v4))
	target := &expr.Payload{DestRegister: second, Base: expr.PayloadBaseTransportHeader, Offset: 8, Len: 16}
	return [][]expr.Any{
		{link, not(members), accept},
		{link, &expr.Payload{DestRegister: second, Base: expr.PayloadBaseLLHeader, Offset: 6, Len: 6}, not(macs), drop},
		frame(frameARP, link, load(senderIP, second, 4), in(sources4), accept),
		frame(frameARP, load(senderIP, register, 4), equal(v4), accept),
		append(frame(frameIPv4, transport(unix.IPPROTO_UDP, 0, 2, 0, 67)...), drop), // a container must not act as a DHCP server
		frame(frameIPv4, link, load(source4, second, 4), in(sources4), accept),
		append(append(dhcp, transport(unix.IPPROTO_UDP, 2, 2, 0, 67)...), accept),
		frame(frameIPv6, append(transport(unix.IPPROTO_ICMPV6, 0, 1, router), drop)...),
		frame(frameIPv6, append(transport(unix.IPPROTO_ICMPV6, 0, 1, redirect), drop)...),
		frame(frameIPv6, append(transport(unix.IPPROTO_ICMPV6, 0, 1, advertisement), link, target, not(sources6), drop)...),
		frame(frameIPv6, link, load(source6, second, 16), in(sources6), accept),
		frame(frameIPv6, load(source6, register, 16), equal(v6), accept), // duplicate address detection
		{drop},
	}
}
