package ports

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/shoenig/test/must"

	"nomad-driver-nspawn/e2e/host/networktest"
)

// zone is a host with a bridge and two containers on it, one of which is hostile.
type zone struct {
	host, victim, hostile *networktest.Space
	table                 *Table
}

const (
	victimMAC, hostileMAC = "02:00:00:00:00:02", "02:00:00:00:00:03"
	victim4, victim6      = "10.66.0.2", "fd66::2"
)

func newZone(t *testing.T) *zone {
	t.Helper()
	z := &zone{host: networktest.New(t), victim: networktest.New(t), hostile: networktest.New(t)}
	z.host.IP(t, "link add vz-test type bridge", "link set vz-test up", "addr add 10.66.0.1/24 dev vz-test", "addr add fd66::1/64 dev vz-test nodad")
	var err error
	z.host.Do(func() { z.table, err = Open() })
	must.NoError(t, err)
	t.Cleanup(func() { z.table.Close() })
	for n, s := range map[int]*networktest.Space{2: z.victim, 3: z.hostile} {
		link := fmt.Sprint("nv-", n)
		z.host.Link(t, link, s, "host0")
		z.host.IP(t, "link set "+link+" master vz-test")
		s.IP(t, fmt.Sprintf("link set host0 address 02:00:00:00:00:0%d", n),
			fmt.Sprintf("addr add 10.66.0.%d/24 dev host0", n), fmt.Sprintf("addr add fd66::%d/64 dev host0 nodad", n))
		mac, err := net.ParseMAC(fmt.Sprintf("02:00:00:00:00:0%d", n))
		must.NoError(t, err)
		z.host.Do(func() {
			err = z.table.Add(Machine{
				Name: link, Link: "vz-test", Port: link, MAC: mac,
				IPv4: netip.MustParseAddr(fmt.Sprintf("10.66.0.%d", n)), IPv6: netip.MustParseAddr(fmt.Sprintf("fd66::%d", n)),
			})
		})
		must.NoError(t, err)
	}
	z.honest(t)
	return z
}

// honest checks that all of them reach each other from their own addresses.
func (z *zone) honest(t *testing.T) {
	t.Helper()
	for _, peer := range []string{"10.66.0.1", "fd66::1", victim4, victim6} {
		z.hostile.AwaitPeer(t, peer)
	}
	z.victim.AwaitPeer(t, "10.66.0.3")
	z.host.AwaitPeer(t, victim6)
	z.host.AwaitPeer(t, victim4)
	z.neighbors(t)
}

// neighbors checks which MAC addresses the host and the victim have learnt.
func (z *zone) neighbors(t *testing.T) {
	t.Helper()
	for _, address := range []string{victim4, victim6} {
		must.StrContains(t, z.host.Run(t, "ip", "neigh", "show", address, "dev", "vz-test"), victimMAC)
	}
	must.StrNotContains(t, z.victim.Run(t, "ip", "neigh", "show", "10.66.0.1"), hostileMAC)
}

// TestZoneForgery makes one container take over the addresses of another one and of the
// host, by ARP, neighbor discovery and source addresses, and another MAC address.
func TestZoneForgery(t *testing.T) {
	z := newZone(t)
	packets := make(chan string, 10)
	for _, address := range []string{"10.66.0.1:9000", "[fd66::1]:9000"} {
		var conn net.PacketConn
		var err error
		z.host.Do(func() { conn, err = net.ListenPacket("udp", address) })
		must.NoError(t, err)
		defer conn.Close()
		go func() {
			buffer := make([]byte, 10)
			for _, client, err := conn.ReadFrom(buffer); err == nil; _, client, err = conn.ReadFrom(buffer) {
				packets <- client.String()
			}
		}()
	}
	z.hostile.Run(t, "sh", "-c", "echo 1 >/proc/sys/net/ipv4/conf/host0/arp_notify; echo 1 >/proc/sys/net/ipv6/conf/host0/ndisc_notify")
	z.hostile.IP(t, "addr add 10.66.0.2/24 dev host0", "addr add fd66::2/64 dev host0 nodad", "addr add 10.66.0.1/24 dev host0",
		"link set host0 down", "link set host0 up") // this announces the address to all
	z.hostile.IP(t, "addr del 10.66.0.1/24 dev host0", "addr replace fd66::2/64 dev host0 nodad", "addr replace fd66::3/64 dev host0 nodad")
	send := func(from, to string) {
		t.Helper()
		z.hostile.Do(func() {
			dialer := net.Dialer{LocalAddr: net.UDPAddrFromAddrPort(netip.MustParseAddrPort(from))}
			if conn, err := dialer.Dial("udp", to); err == nil {
				_, _ = conn.Write([]byte("hello"))
				conn.Close()
			}
		})
	}
	for range 3 {
		send(victim4+":5555", "10.66.0.1:9000")
		send("["+victim6+"]:5555", "[fd66::1]:9000")
	}
	send("10.66.0.3:5555", "10.66.0.1:9000") // the genuine packet comes last
	must.Eq(t, "10.66.0.3:5555", <-packets)
	send("[fd66::3]:5555", "[fd66::1]:9000")
	must.Eq(t, "[fd66::3]:5555", <-packets)
	z.neighbors(t)

	z.hostile.IP(t, "link set host0 address "+victimMAC)
	must.Eq(t, "", z.hostile.Ask("tcp", "10.66.0.1:9000"))
	must.StrNotContains(t, z.host.Run(t, "bridge", "fdb", "show", "dev", "nv-3"), victimMAC+" master")
	z.hostile.IP(t, "link set host0 address "+hostileMAC, "addr del 10.66.0.2/24 dev host0", "addr del fd66::2/64 dev host0")
	z.hostile.IP(t, "addr replace fd66::3/64 dev host0 nodad")
	z.honest(t)

	// Without the table, the same attacks succeed.
	z.host.Do(func() {
		_, err := z.table.Remove("nv-3")
		must.NoError(t, err)
	})
	z.hostile.IP(t, "addr add 10.66.0.2/24 dev host0", "link set host0 down", "link set host0 up")
	send(victim4+":5555", "10.66.0.1:9000")
	must.Eq(t, victim4+":5555", <-packets)
	must.True(t, strings.Contains(z.host.Run(t, "ip", "neigh", "show", victim4, "dev", "vz-test"), hostileMAC))
}
