package network

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"

	"nomad-driver-nspawn/e2e/host/hosttest"
)

// natFamily is one of the families that systemd has a table of. Addresses differ
// in length.
type natFamily struct {
	nftables.TableFamily
	address     nftables.SetDatatype
	guest       netip.Addr
	masqueraded [2]netip.Addr // the first, and the first after
}

var natFamilies = []natFamily{
	{
		nftables.TableFamilyIPv4, nftables.TypeIPAddr, netip.MustParseAddr("192.168.5.18"),
		[2]netip.Addr{netip.MustParseAddr("192.168.5.16"), netip.MustParseAddr("192.168.5.32")},
	},
	{
		nftables.TableFamilyIPv6, nftables.TypeIP6Addr, netip.MustParseAddr("fd00:5::2"),
		[2]netip.Addr{netip.MustParseAddr("fd00:5::"), netip.MustParseAddr("fd00:5:0:1::")},
	},
}

func (f natFamily) table() *nftables.Table {
	return &nftables.Table{Name: "io.systemd.nat", Family: f.TableFamily}
}

func (f natFamily) masquerade() *nftables.Set {
	return &nftables.Set{Table: f.table(), Name: "masq_saddr", KeyType: f.address, Interval: true}
}

// ports is the map as systemd declares it: keys and values are concatenations,
// which it does not flag.
func (f natFamily) ports() *nftables.Set {
	return &nftables.Set{
		Table: f.table(), Name: "map_port_ipport", IsMap: true,
		KeyType:  nftables.MustConcatSetType(nftables.TypeInetProto, nftables.TypeInetService),
		DataType: nftables.MustConcatSetType(f.address, nftables.TypeInetService),
	}
}

// forward is how systemd puts a port into the map.
func (f natFamily) forward(protocol byte, host, guest uint16) nftables.SetElement {
	service := func(port uint16) []byte { return append(binary.BigEndian.AppendUint16(nil, port), 0, 0) }
	return nftables.SetElement{
		Key: append([]byte{protocol, 0, 0, 0}, service(host)...),
		Val: append(f.guest.AsSlice(), service(guest)...),
	}
}

// lay makes the table as systemd does, but for the chains and rules, which only
// read what is in it. It goes with the test.
func (f natFamily) lay(t *testing.T, forwards ...nftables.SetElement) {
	t.Helper()
	f.layTable(t)
	commit(t, func(conn *nftables.Conn) {
		must.NoError(t, conn.AddSet(f.masquerade(), []nftables.SetElement{
			{Key: f.masqueraded[0].AsSlice()}, {Key: f.masqueraded[1].AsSlice(), IntervalEnd: true},
		}))
		must.NoError(t, conn.AddSet(f.ports(), forwards))
	})
}

func (f natFamily) layTable(t *testing.T) {
	t.Helper()
	commit(t, func(conn *nftables.Conn) { conn.AddTable(f.table()) })
	t.Cleanup(func() { commit(t, func(conn *nftables.Conn) { conn.DelTable(f.table()) }) })
}

func commit(t *testing.T, fill func(*nftables.Conn)) {
	t.Helper()
	conn, err := nftables.New()
	must.NoError(t, err)
	fill(conn)
	must.NoError(t, conn.Flush())
}

// elements returns what is in a set or map, in order.
func elements(t *testing.T, set *nftables.Set) []string {
	t.Helper()
	conn, err := nftables.New()
	must.NoError(t, err)
	all, err := conn.GetSetElements(set)
	must.NoError(t, err)
	return describe(all...)
}

func describe(all ...nftables.SetElement) []string {
	lines := []string{}
	for _, e := range all {
		lines = append(lines, fmt.Sprintf("%x to %x, end %t", e.Key, e.Val, e.IntervalEnd))
	}
	slices.Sort(lines)
	return lines
}

func TestRemoveForwards(t *testing.T) {
	hosttest.RequireRoot(t)
	type want struct{ ports, masqueraded []string }
	var wants []want
	for _, f := range natFamilies {
		others := []nftables.SetElement{
			f.forward(unix.IPPROTO_UDP, 8080, 80), f.forward(unix.IPPROTO_TCP, 8081, 80), f.forward(unix.IPPROTO_UDP, 8081, 80),
			f.forward(unix.IPPROTO_TCP, 36895, 80), // 8080 with its bytes swapped
			f.forward(unix.IPPROTO_TCP, 80, 8080),
		}
		f.lay(t, append(others, f.forward(unix.IPPROTO_TCP, 8080, 80), f.forward(unix.IPPROTO_UDP, 53, 5353))...)
		wants = append(wants, want{describe(others...), elements(t, f.masquerade())})
	}
	files := openFiles(t)
	for range 2 { // The second time there is nothing left to remove.
		begin := time.Now()
		must.NoError(t, RemoveForwards([]Forward{{"tcp", 8080}, {"udp", 53}, {"tcp", 8080}, {"udp", 443}}))
		t.Log("took", time.Since(begin))
		for i, f := range natFamilies {
			must.Eq(t, wants[i].ports, elements(t, f.ports()))
			must.Eq(t, wants[i].masqueraded, elements(t, f.masquerade()))
		}
	}
	must.Eq(t, files, openFiles(t))
}

func TestRemoveForwardsWithoutAny(t *testing.T) {
	hosttest.RequireRoot(t)
	for state, lay := range map[string]func(*testing.T, natFamily){
		"no table":  func(*testing.T, natFamily) {},
		"no map":    func(t *testing.T, f natFamily) { f.layTable(t) },
		"empty map": func(t *testing.T, f natFamily) { f.lay(t) },
	} {
		t.Run(state, func(t *testing.T) {
			for _, f := range natFamilies {
				lay(t, f)
			}
			begin := time.Now()
			must.NoError(t, RemoveForwards([]Forward{{"tcp", 8080}}))
			t.Log("took", time.Since(begin))
		})
	}
	for _, f := range natFamilies {
		t.Run(fmt.Sprint("only in family ", f.TableFamily), func(t *testing.T) {
			f.lay(t, f.forward(unix.IPPROTO_TCP, 8080, 80))
			must.NoError(t, RemoveForwards([]Forward{{"tcp", 8080}}))
			must.SliceEmpty(t, elements(t, f.ports()))
		})
	}
}

// TestRemoveForwardsTogether removes ports while others remove some of them.
func TestRemoveForwardsTogether(t *testing.T) {
	hosttest.RequireRoot(t)
	var forwards []Forward
	for host := range uint16(100) {
		forwards = append(forwards, Forward{"tcp", 8000 + host})
	}
	for _, f := range natFamilies {
		var all []nftables.SetElement
		for _, forward := range forwards {
			all = append(all, f.forward(unix.IPPROTO_TCP, forward.HostPort, 80))
		}
		f.lay(t, all...)
	}
	var together sync.WaitGroup
	for part := range slices.Chunk(forwards, 10) {
		for _, ports := range [][]Forward{part, forwards} {
			together.Go(func() {
				if err := RemoveForwards(ports); err != nil {
					t.Error(err)
				}
			})
		}
	}
	together.Wait()
	for _, f := range natFamilies {
		must.SliceEmpty(t, elements(t, f.ports()))
	}
}

func TestRemoveForwardsRefuses(t *testing.T) {
	hosttest.RequireRoot(t)
	f := natFamilies[0]
	f.lay(t, f.forward(unix.IPPROTO_TCP, 8080, 80))
	before := elements(t, f.ports())
	err := RemoveForwards([]Forward{{"tcp", 8080}, {"sctp", 8081}})
	must.EqError(t, err, `remove forwarded ports: port 8081: protocol "sctp" is neither tcp nor udp`)
	must.Eq(t, before, elements(t, f.ports()))
}
