package ports

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/shoenig/test/must"

	"nomad-driver-nspawn/e2e/host/networktest"
)

// TestReach connects to a forwarded port from everywhere, and checks which client address
// the container sees.
func TestReach(t *testing.T) {
	w := newWorld(t)
	w.web.Serve(t, ":80", "web")
	must.NoError(t, w.add("sibling", Mapping{Host: 9090, Container: 90})) // also on the loopback
	must.NoError(t, w.add("web", Mapping{Host: 8080, Container: 80}))
	for _, test := range []struct {
		from         *networktest.Space
		to, expected string
	}{
		{w.other, "203.0.113.1", "203.0.113.2"},
		{w.other, "203.0.113.7", "203.0.113.2"},
		{w.other, "[2001:db8::1]", "2001:db8::2"},
		{w.host, "203.0.113.1", "203.0.113.1"},
		{w.host, "[2001:db8::1]", "2001:db8::1"},
		{w.host, "127.0.0.1", "10.99.1.1"},
		{w.host, "127.1.2.3", "10.99.1.1"},
		{w.host, "[::1]", "fd00:1::1"},
		{w.host, "localhost", "fd00:1::1"},
		{w.sibling, "203.0.113.1", "10.99.2.2"},
		{w.sibling, "10.99.2.1", "10.99.2.2"},
		{w.sibling, "[2001:db8::1]", "fd00:2::2"},
		{w.web, "203.0.113.1", "10.99.1.1"}, // from the container itself
		{w.web, "[2001:db8::1]", "fd00:1::1"},
	} {
		for _, network := range []string{"tcp", "udp"} {
			got := test.from.Hear(network, test.to+":8080")
			if test.to == "localhost" && got == "web from 10.99.1.1" { // either family may come first
				continue
			}
			must.Eq(t, "web from "+test.expected, got, must.Sprint(network, " to ", test.to))
		}
	}
	w.other.Serve(t, ":7000", "other")
	must.Eq(t, "other from 203.0.113.1", w.web.Hear("tcp", "203.0.113.2:7000")) // it is masqueraded
	must.Eq(t, "other from 2001:db8::1", w.web.Hear("udp", "[2001:db8::2]:7000"))

	w.remove(t, "web")
	must.Eq(t, "", w.other.Ask("tcp", "203.0.113.1:8080"))
	must.Eq(t, "", w.host.Ask("tcp", "127.0.0.1:8080"))
}

func TestHostIP(t *testing.T) {
	w := newWorld(t)
	w.web.Serve(t, ":80", "web")
	address := netip.MustParseAddr
	must.NoError(t, w.add("web", Mapping{address("203.0.113.7"), 8080, 80}, Mapping{address("127.0.0.1"), 8081, 80},
		Mapping{address("2001:db8::1"), 8082, 80}, Mapping{address("::1"), 8083, 80}))
	for _, to := range []string{"203.0.113.7:8080", "127.0.0.1:8081", "[2001:db8::1]:8082", "[::1]:8083"} {
		must.StrHasPrefix(t, "web", w.host.Hear("tcp", to), must.Sprint(to))
		must.StrHasPrefix(t, "web", w.host.Hear("udp", to), must.Sprint(to))
	}
	for _, to := range []string{
		"203.0.113.1:8080", "127.0.0.1:8080", "[2001:db8::1]:8080", "203.0.113.7:8081", "[::1]:8081",
		"203.0.113.7:8082", "127.0.0.1:8083",
	} {
		must.Eq(t, "", w.host.Ask("tcp", to), must.Sprint(to))
	}
	w.other.IP(t, "route add 127.0.0.1/32 via 203.0.113.1")
	w.other.Run(t, "sh", "-c", "echo 1 >/proc/sys/net/ipv4/conf/all/route_localnet")
	must.Eq(t, "", w.other.AskFrom(&net.TCPAddr{IP: net.IPv4(203, 0, 113, 2)}, "tcp", "127.0.0.1:8081"))

	m := w.machines["web"]
	m.IPv6, m.Mappings = netip.Addr{}, []Mapping{{address("::1"), 8084, 80}}
	must.ErrorContains(t, w.table.Add(m), "forward port 8084 of ::1: the container has no address of that family")
}

// TestLoopbackStaysClosed connects from a container to services on the host's loopback,
// while ports of the container are forwarded there.
func TestLoopbackStaysClosed(t *testing.T) {
	w := newWorld(t)
	w.host.Serve(t, "127.0.0.1:9000", "secret")
	w.host.Serve(t, "[::1]:9000", "secret")
	must.NoError(t, w.add("web", Mapping{Host: 8080, Container: 80}))
	w.web.Run(t, "sh", "-c", "echo 1 >/proc/sys/net/ipv4/conf/all/route_localnet")
	w.web.IP(t, "route del local 127.0.0.0/8 table local dev lo", "addr del 127.0.0.1/8 dev lo",
		"route add 127.0.0.1/32 via 10.99.1.1", "-6 addr del ::1/128 dev lo", "-6 route add ::1/128 via fd00:1::1")
	for _, network := range []string{"tcp", "udp"} {
		must.Eq(t, "", w.web.Ask(network, "127.0.0.1:9000"))
		must.Eq(t, "", w.web.Ask(network, "[::1]:9000"))
	}
	must.Eq(t, "secret from 127.0.0.1", w.host.Hear("tcp", "127.0.0.1:9000")) // the service is running
	must.Eq(t, "secret from ::1", w.host.Hear("tcp", "[::1]:9000"))
}

// TestForgery sends packets from one container with the address of another, over our link
// and over one of systemd-nspawn's.
func TestForgery(t *testing.T) {
	for _, prefix := range []string{"nv-", "ve-"} {
		t.Run(prefix, func(t *testing.T) { testForgery(t, prefix) })
	}
}

func testForgery(t *testing.T, prefix string) {
	w := newWorld(t)
	w.host.IP(t, "link set nv-sibling name "+prefix+"sib")
	seen := make(chan string, 10)
	for _, to := range []string{"10.99.1.1:9000", "[fd00:1::1]:9000"} {
		var conn net.PacketConn
		var err error
		w.host.Do(func() { conn, err = net.ListenPacket("udp", to) })
		must.NoError(t, err)
		defer conn.Close()
		go func() {
			buffer := make([]byte, 100)
			for n, client, err := conn.ReadFrom(buffer); err == nil; n, client, err = conn.ReadFrom(buffer) {
				seen <- string(buffer[:n]) + " from " + client.String()
			}
		}()
	}
	send := func(from, to string) {
		t.Helper()
		var err error
		w.sibling.Do(func() {
			var conn net.Conn
			local := net.UDPAddrFromAddrPort(netip.MustParseAddrPort(from))
			dialer := net.Dialer{LocalAddr: local}
			if conn, err = dialer.Dial("udp", to); err == nil {
				_, err = conn.Write([]byte("hello"))
				conn.Close()
			}
		})
		must.NoError(t, err)
	}
	w.sibling.IP(t, "addr add 10.99.1.2/32 dev lo", "addr add fd00:1::2/128 dev lo nodad")
	send("10.99.1.2:5555", "10.99.1.1:9000")
	send("[fd00:1::2]:5555", "[fd00:1::1]:9000")
	send("10.99.2.2:5555", "10.99.1.1:9000") // the genuine packet comes last
	must.Eq(t, "hello from 10.99.2.2:5555", <-seen)
	send("[fd00:2::2]:5555", "[fd00:1::1]:9000")
	must.Eq(t, "hello from [fd00:2::2]:5555", <-seen)
}

func TestOwners(t *testing.T) {
	w := newWorld(t)
	must.NoError(t, w.add("web", Mapping{Host: 8080, Container: 80}))
	must.NoError(t, w.add("web", Mapping{Host: 8080, Container: 80})) // a second time, as after a restart of the plugin
	var inUse *InUseError
	err := w.add("sibling", Mapping{Host: 9090, Container: 80}, Mapping{Host: 8080, Container: 80})
	must.True(t, errors.As(err, &inUse), must.Sprint(err))
	must.Eq(t, InUseError{"TCP port 8080", "web"}, *inUse)
	owners := func(table *Table) []string {
		list, err := table.Owners()
		must.NoError(t, err)
		return list
	}
	must.Eq(t, []string{"web"}, owners(w.table))

	m := w.machines["web"] // the same machine name with another address
	m.IPv4, m.Mappings = netip.MustParseAddr("10.99.9.2"), []Mapping{{Host: 8081, Container: 80}, {Host: 8080, Container: 81}}
	w.host.Do(func() { err = w.table.Add(m) })
	must.NoError(t, err)
	must.NoError(t, w.add("sibling", Mapping{Host: 9090, Container: 80}))
	var next *Table
	w.host.Do(func() { next, err = Open() }) // the next plugin
	must.NoError(t, err)
	defer next.Close()
	must.Eq(t, []string{"sibling", "web"}, owners(next))
	w.host.Do(func() { _, err = next.Remove("web") })
	must.NoError(t, err)
	w.host.Do(func() { _, err = next.Remove("web") })
	must.NoError(t, err)
	must.Eq(t, []string{"sibling"}, owners(next))
	must.NoError(t, w.add("web", Mapping{Host: 8080, Container: 80}))
	w.remove(t, "sibling")
	w.remove(t, "web")
	must.SliceEmpty(t, owners(next))
}

// TestWatch removes the table in several ways while a restarted plugin watches it.
func TestWatch(t *testing.T) {
	w := newWorld(t)
	w.web.Serve(t, ":80", "web")
	must.NoError(t, w.add("web", Mapping{Host: 8080, Container: 80}))
	conn := func() (c *nftables.Conn) {
		var err error
		w.host.Do(func() { c, err = nftables.New(nftables.AsLasting()) })
		must.NoError(t, err)
		return c
	}()
	defer conn.CloseLasting()
	var next *Table
	var err error
	w.host.Do(func() { next, err = Open() })
	must.NoError(t, err)
	defer next.Close()
	ctx, cancel := context.WithCancel(t.Context())
	repaired, ended := make(chan bool, 100), make(chan error, 1)
	conn.DelTable(table) // before the watch begins
	must.NoError(t, conn.Flush())
	watcher := w.host.Twin(t) // Watch does not return
	go watcher.Do(func() {
		ended <- next.Watch(ctx, func(done bool, err error) {
			if err != nil {
				t.Error(err)
			}
			repaired <- done
		})
	})
	must.True(t, <-repaired)
	for name, damage := range map[string]func(){
		"flush ruleset": conn.FlushRuleset,
		"delete table":  func() { conn.DelTable(table) },
		"flush table":   func() { conn.FlushTable(table) },
		"flush a chain": func() { conn.FlushChain(&nftables.Chain{Table: table, Name: "guard"}) },
		"another's rule": func() {
			conn.AddTable(&nftables.Table{Name: "x", Family: nftables.TableFamilyINet})
			conn.FlushRuleset()
		},
	} {
		damage()
		begin := time.Now()
		must.NoError(t, conn.Flush())
		select {
		case done := <-repaired:
			must.True(t, done)
			t.Log(name, "repaired in", time.Since(begin))
		case <-time.After(networktest.BusyPatience):
			t.Fatal("not repaired after ", name)
		}
		for len(repaired) > 0 {
			<-repaired
		}
		must.Eq(t, "web from 10.99.1.1", w.host.Hear("tcp", "127.0.0.1:8080"), must.Sprint("after ", name))
	}
	cancel()
	must.ErrorIs(t, <-ended, context.Canceled)
}

// TestUDPFlows moves a port from one container to another while a client keeps sending
// from the same socket.
func TestUDPFlows(t *testing.T) {
	w := newWorld(t)
	w.web.Serve(t, ":80", "web")
	w.sibling.Serve(t, ":80", "sibling")
	var conn net.Conn
	var err error
	w.other.Do(func() { conn, err = net.Dial("udp", "203.0.113.1:8080") })
	must.NoError(t, err)
	defer conn.Close()
	must.Eq(t, "", networktest.Exchange(conn, networktest.Patience))
	must.NoError(t, w.add("web", Mapping{Host: 8080, Container: 80}))
	w.forget(t, "web", Mapping{Host: 8080})
	_ = networktest.Exchange(conn, networktest.Patience) // the answer may be an error, as nothing was listening
	must.Eq(t, "web from 203.0.113.2", networktest.Exchange(conn, networktest.BusyPatience))
	w.remove(t, "web")
	must.Eq(t, "", networktest.Exchange(conn, networktest.Patience))
	must.NoError(t, w.add("sibling", Mapping{Host: 8080, Container: 80}))
	w.forget(t, "sibling", Mapping{Host: 8080})
	_ = networktest.Exchange(conn, networktest.Patience)
	must.Eq(t, "sibling from 203.0.113.2", networktest.Exchange(conn, networktest.BusyPatience))
}

// TestCost compares the time of a start and of an end for different numbers of mappings.
func TestCost(t *testing.T) {
	w := newWorld(t)
	m := w.machines["web"]
	measure := func() (fastest time.Duration) {
		fastest = time.Hour
		for range 30 {
			w.host.Do(func() {
				begin := time.Now()
				must.NoError(t, w.table.Add(Machine{Name: "next", IPv4: netip.MustParseAddr("10.99.77.2"), Mappings: []Mapping{{Host: 9999, Container: 80}}}))
				fastest = min(fastest, time.Since(begin))
				_, err := w.table.Remove("next")
				must.NoError(t, err)
			})
		}
		return fastest
	}
	one := measure()
	for n := range 500 {
		m.Name = fmt.Sprint("machine-", n)
		m.IPv4 = netip.AddrFrom4([4]byte{10, 98, byte(n / 256), byte(n)})
		m.IPv6, m.Mappings, m.Link = netip.Addr{}, []Mapping{{Host: uint16(10000 + n), Container: 80}}, ""
		w.host.Do(func() { must.NoError(t, w.table.Add(m)) })
	}
	many := measure()
	t.Log("added in", one, "with 500 present in", many)
	must.Less(t, 2*one+time.Millisecond, many)
}

func TestReserve(t *testing.T) {
	w := newWorld(t)
	reserve := func(mappings ...Mapping) (r *Reservation, err error) {
		w.host.Do(func() { r, err = Reserve(mappings) })
		return r, err
	}
	listen := func(network, address string) (err error) {
		w.host.Do(func() {
			if network == "udp" {
				var conn net.PacketConn
				if conn, err = net.ListenPacket(network, address); err == nil {
					conn.Close()
				}
				return
			}
			var listener net.Listener
			if listener, err = net.Listen(network, address); err == nil {
				listener.Close()
			}
		})
		return err
	}
	r, err := reserve(Mapping{Host: 8080}, Mapping{Host: 8081, HostIP: netip.MustParseAddr("127.0.0.1")})
	must.NoError(t, err)
	for _, address := range []string{":8080", "127.0.0.1:8080", "[::1]:8080", "203.0.113.1:8080", "127.0.0.1:8081", ":8081"} {
		must.ErrorContains(t, listen("tcp", address), "in use", must.Sprint(address))
		must.ErrorContains(t, listen("udp", address), "in use", must.Sprint(address))
	}
	must.NoError(t, listen("tcp", "203.0.113.1:8081"))
	_, err = reserve(Mapping{Host: 8080})
	must.ErrorContains(t, err, "reserve port 8080 of the host: another program uses it for TCP")
	must.NoError(t, r.Close())
	must.NoError(t, listen("tcp", ":8080"))

	w.host.Serve(t, "127.0.0.1:8080", "daemon")
	_, err = reserve(Mapping{Host: 8082}, Mapping{Host: 8080})
	must.ErrorContains(t, err, "`ss -anp sport = :8080` shows which")
	must.NoError(t, listen("tcp", ":8082")) // the port has been released
	_, err = reserve(Mapping{Host: 8080, HostIP: netip.MustParseAddr("203.0.113.99")})
	must.ErrorContains(t, err, "reserve port 8080 of 203.0.113.99 of the host: the host does not have this address")
}

func TestFromNomad(t *testing.T) {
	w := newWorld(t)
	w.host.IP(t, "route add default via 203.0.113.2", "addr add 198.51.100.9/24 dev lo")
	for given, want := range map[string]string{
		"203.0.113.1": "invalid IP", "203.0.113.7": "invalid IP", "2001:db8::1": "invalid IP", "::ffff:203.0.113.1": "invalid IP",
		"0.0.0.0": "invalid IP", "198.51.100.9": "198.51.100.9", "127.0.0.1": "127.0.0.1",
	} {
		var got netip.Addr
		var err error
		w.host.Do(func() { got, err = FromNomad(netip.MustParseAddr(given)) })
		must.NoError(t, err)
		must.Eq(t, want, got.String(), must.Sprint(given))
	}
}

// TestAddRefuses checks that ports are not forwarded to addresses that no machine can
// have.
func TestAddRefuses(t *testing.T) {
	w := newWorld(t)
	must.NoError(t, w.add("web"))
	w.machines["thief"] = Machine{Name: "thief", IPv4: w.machines["web"].IPv4, Link: "nv-sibling"}
	var used *InUseError
	must.ErrorAs(t, w.add("thief", Mapping{Host: 8080, Container: 80}), &used)
	must.Eq(t, &InUseError{Port: "address 10.99.1.2", Owner: "web"}, used)
	must.True(t, w.table.Has(w.machines["web"].IPv4, "thief"))
	must.False(t, w.table.Has(w.machines["web"].IPv4, "web"))
	for _, address := range []string{"127.0.0.1", "224.0.0.1", "0.0.0.0", "169.254.1.1"} {
		w.machines["liar"] = Machine{Name: "liar", IPv4: netip.MustParseAddr(address), Link: "nv-sibling"}
		must.ErrorContains(t, w.add("liar", Mapping{Host: 8080, Container: 80}), "a machine cannot have address "+address)
	}
	w.remove(t, "web")
	must.NoError(t, w.add("thief", Mapping{Host: 8080, Container: 80}))
}
