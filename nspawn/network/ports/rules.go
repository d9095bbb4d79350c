package ports

import (
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// TableName is the name of our tables in the families inet and bridge.
const TableName = "nomad-nspawn"

// LinkPrefix is the beginning of the name of every link that the driver creates on the
// host.
const LinkPrefix = "nv-"

// family holds the differences between IPv4 and IPv6: names of maps and sets, and the
// positions of addresses in a packet.
type family struct {
	protocol                                byte
	ports, anywhere, machines, self, direct string
	address                                 nftables.SetDatatype
	length, source, destination             uint32 // offsets in the network header
	addressOf                               func(Machine) netip.Addr
}

var families = []family{
	{
		unix.NFPROTO_IPV4, "ports4", "any4", "machines4", "self4", "direct4", nftables.TypeIPAddr, 4, 12, 16,
		func(m Machine) netip.Addr { return m.IPv4 },
	},
	{
		unix.NFPROTO_IPV6, "ports6", "any6", "machines6", "self6", "direct6", nftables.TypeIP6Addr, 16, 8, 24,
		func(m Machine) netip.Addr { return m.IPv6 },
	},
}

var table = &nftables.Table{Name: TableName, Family: nftables.TableFamilyINet}

// inetSets returns the maps and sets of the inet table. The map ports is for ports of one
// address of the host, and anywhere for ports of all addresses. The set machines has the
// addresses that the host masquerades, direct the addresses that it does not. The set
// self contains each container's address twice.
func inetSets() []*nftables.Set {
	var all []*nftables.Set
	for _, f := range families {
		concat := nftables.MustConcatSetType
		target := concat(f.address, nftables.TypeInetService)
		all = append(all,
			&nftables.Set{
				Table: table, Name: f.ports, IsMap: true, Concatenation: true, DataType: target,
				KeyType: concat(nftables.TypeInetProto, f.address, nftables.TypeInetService),
			},
			&nftables.Set{
				Table: table, Name: f.anywhere, IsMap: true, Concatenation: true, DataType: target,
				KeyType: concat(nftables.TypeInetProto, nftables.TypeInetService),
			},
			&nftables.Set{Table: table, Name: f.machines, KeyType: f.address},
			&nftables.Set{Table: table, Name: f.direct, KeyType: f.address},
			&nftables.Set{Table: table, Name: f.self, Concatenation: true, KeyType: concat(f.address, f.address)},
		)
	}
	return all
}

// sets returns the maps and sets of both tables.
func sets() []*nftables.Set { return append(inetSets(), bridgeSets()...) }

// addTable adds the inet table to a transaction. It keeps existing elements and replaces
// the rules.
func addTable(conn *nftables.Conn) error { return replaceRules(conn, table, inetSets(), inetChains()) }

func addBridgeTable(conn *nftables.Conn) error {
	return replaceRules(conn, bridgeTable, bridgeSets(), bridgeChains())
}

// replaceRules adds a table with its sets and chains, keeps the elements of the sets, and
// replaces all rules.
func replaceRules(conn *nftables.Conn, table *nftables.Table, sets []*nftables.Set, all []chain) error {
	conn.AddTable(table)
	conn.FlushTable(table)
	for _, set := range sets {
		if err := conn.AddSet(set, nil); err != nil {
			return err
		}
	}
	for _, chain := range all { // A rule may jump to any chain.
		conn.AddChain(chain.Chain)
	}
	for _, chain := range all {
		for _, rule := range chain.rules {
			conn.AddRule(&nftables.Rule{Table: table, Chain: chain.Chain, Exprs: rule})
		}
	}
	return nil
}

// chain is a chain together with its rules.
type chain struct {
	*nftables.Chain
	rules [][]expr.Any
}

func inetChains() []chain {
	const forwarded = "forwarded"
	base := func(name string, kind nftables.ChainType, hook *nftables.ChainHook, priority nftables.ChainPriority, rules [][]expr.Any) chain {
		return chain{&nftables.Chain{Table: table, Name: name, Type: kind, Hooknum: hook, Priority: &priority}, rules}
	}
	const nat = nftables.ChainTypeNAT
	jump := [][]expr.Any{{&expr.Verdict{Kind: expr.VerdictJump, Chain: forwarded}}}
	return []chain{
		{&nftables.Chain{Table: table, Name: forwarded}, forwardRules()},
		base("guard", nftables.ChainTypeFilter, nftables.ChainHookPrerouting, -300, guardRules()),
		base("prerouting", nat, nftables.ChainHookPrerouting, -100, jump),
		base("output", nat, nftables.ChainHookOutput, -100, jump),
		base("postrouting", nat, nftables.ChainHookPostrouting, 100, masqueradeRules()),
	}
}

// Registers of four bytes start at 8; register 1 overlaps the first four of them.
const (
	register  = 1
	register4 = 8
)

// forwardRules returns the rules of the chain to which prerouting and output jump.
func forwardRules() [][]expr.Any {
	rules := [][]expr.Any{{ // fib daddr type != local return
		&expr.Fib{Register: register, ResultADDRTYPE: true, FlagDADDR: true},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: register, Data: binaryutil.NativeEndian.PutUint32(unix.RTN_LOCAL)},
		&expr.Verdict{Kind: expr.VerdictReturn},
	}}
	for _, f := range families { // dnat ip to meta l4proto . ip daddr . th dport map @ports4
		rules = append(rules, f.forward(f.ports, load(f.destination, register4+1, f.length), register4+1+f.length/4))
	}
	for _, f := range families { // dnat ip to meta l4proto . th dport map @any4
		rules = append(rules, f.forward(f.anywhere, nil, register4+1))
	}
	return rules
}

func (f family) forward(set string, address expr.Any, portRegister uint32) []expr.Any {
	rule := append(f.is(), &expr.Meta{Key: expr.MetaKeyL4PROTO, Register: register})
	if address != nil {
		rule = append(rule, address)
	}
	return append(rule,
		&expr.Payload{DestRegister: portRegister, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Lookup{SourceRegister: register, DestRegister: register, IsDestRegSet: true, SetName: set},
		&expr.NAT{
			Type: expr.NATTypeDestNAT, Family: uint32(f.protocol),
			RegAddrMin: register, RegProtoMin: register4 + f.length/4, Specified: true,
		},
	)
}

// masqueradeRules returns rules for packets whose source address the receiver could not
// answer.
func masqueradeRules() [][]expr.Any {
	loopback := map[byte][]expr.Any{
		unix.NFPROTO_IPV4: {load(12, register, 1), equal([]byte{127})},
		unix.NFPROTO_IPV6: {load(8, register, 16), equal(netip.IPv6Loopback().AsSlice())},
	}
	var rules [][]expr.Any
	add := func(f family, parts ...expr.Any) {
		rules = append(rules, append(append(f.is(), parts...), &expr.Masq{}))
	}
	for _, f := range families {
		from, to := load(f.source, register, f.length), load(f.destination, register, f.length)
		// ip saddr @machines4 ip daddr != @machines4 masquerade
		add(f, from, in(f.machines), to, &expr.Lookup{SourceRegister: register, SetName: f.machines, Invert: true})
		// ip saddr 127.0.0.0/8 ip daddr @machines4 masquerade
		for _, set := range []string{f.machines, f.direct} {
			add(f, append(loopback[f.protocol], to, in(set))...)
		}
		// ip saddr . ip daddr @self4 masquerade
		add(f, load(f.source, register4, f.length), load(f.destination, register4+f.length/4, f.length), in(f.self))
		// ct status dnat ip daddr @direct4 masquerade
		add(f,
			&expr.Ct{Key: expr.CtKeySTATUS, Register: register},
			&expr.Bitwise{
				SourceRegister: register, DestRegister: register, Len: 4,
				Mask: binaryutil.NativeEndian.PutUint32(statusDNAT), Xor: make([]byte, 4),
			},
			&expr.Cmp{Op: expr.CmpOpNeq, Register: register, Data: make([]byte, 4)},
			to, in(f.direct))
	}
	return rules
}

// statusDNAT is IPS_DST_NAT in the status of a connection
// (linux/netfilter/nf_conntrack_common.h).
const statusDNAT = 0x20

// guardRules returns rules that protect the host's 127.0.0.0/8, which route_localnet
// opens for other machines on a link. They also drop packets from containers whose source
// address is not routed back over the same link.
func guardRules() [][]expr.Any {
	v4 := families[0]
	name := make([]byte, unix.IFNAMSIZ)
	copy(name, "lo")
	loopback := []expr.Any{ // iifname != "lo" ip daddr 127.0.0.0/8 drop
		&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: register},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: register, Data: name},
	}
	loopback = append(loopback, v4.is()...)
	loopback = append(loopback, load(v4.destination, register, 1), equal([]byte{127}), &expr.Verdict{Kind: expr.VerdictDrop})
	rules := [][]expr.Any{loopback}
	for _, f := range families { // ip saddr 0.0.0.0 accept: a machine that requests an address has none yet
		rules = append(rules, append(f.is(), load(f.source, register, f.length), equal(make([]byte, f.length)), &expr.Verdict{Kind: expr.VerdictAccept}))
	}
	for _, prefix := range guarded { // iifname "nv-*" fib saddr . iif oif missing drop
		rules = append(rules, []expr.Any{
			&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: register},
			equal([]byte(prefix)),
			&expr.Fib{Register: register, ResultOIF: true, FlagSADDR: true, FlagIIF: true, FlagPRESENT: true},
			equal(make([]byte, 4)),
			&expr.Verdict{Kind: expr.VerdictDrop},
		})
	}
	return rules
}

// guarded lists the beginnings of the names of links to containers: our links, and those
// of systemd-nspawn for booted guests and zones.
var guarded = []string{LinkPrefix, "ve-", "vz-"}

func (f family) is() []expr.Any {
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: register}, equal([]byte{f.protocol})}
}

func load(offset, into, length uint32) expr.Any {
	return &expr.Payload{DestRegister: into, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: length}
}

func equal(data []byte) expr.Any { return &expr.Cmp{Op: expr.CmpOpEq, Register: register, Data: data} }

func in(set string) expr.Any { return &expr.Lookup{SourceRegister: register, SetName: set} }
