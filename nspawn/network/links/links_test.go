package links

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv4/server4"
	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"

	"nomad-driver-nspawn/e2e/host/hosttest"
	"nomad-driver-nspawn/e2e/host/networktest"
)

// TestMain runs the tests in a network namespace of their own, which serves as their
// host. A disposable host is used as it is.
func TestMain(m *testing.M) {
	hosttest.RunPrivateOutside(m, unix.CLONE_NEWNET)
}

var testPool = netip.MustParsePrefix("10.213.0.0/16")

func newHost(t testing.TB, pool string) *Host {
	t.Helper()
	h, err := New(netip.MustParsePrefix(pool), "5f1c0a8e")
	must.NoError(t, err)
	return h
}

func open(t testing.TB, s *networktest.Space) *os.File {
	t.Helper()
	file, err := os.Open(s.Path)
	must.NoError(t, err)
	t.Cleanup(func() { file.Close() })
	return file
}

// connect connects a container to a host.
func connect(t testing.TB, host, container *networktest.Space, h *Host, s Spec) (c Connection, err error) {
	t.Helper()
	namespace := open(t, container)
	host.Do(func() { c, err = h.Connect(t.Context(), namespace, s) })
	return c, err
}

func disconnectAll(t testing.TB, host *networktest.Space, machine string) {
	t.Helper()
	var err error
	host.Do(func() {
		if _, err = Disconnect(machine); err == nil {
			err = RemoveZones(func(string) bool { return false })
		}
	})
	must.NoError(t, err)
}

// TestVeth sends one packet of each family right after Connect, for many containers. A
// lost packet would take longer than Ask waits, because it is not sent again within a
// second.
func TestVeth(t *testing.T) {
	host, h := networktest.New(t), newHost(t, "10.213.0.0/16")
	host.Serve(t, ":9000", "host")
	const starts = 50
	var took []time.Duration
	for n := range starts {
		container := networktest.Bare(t)
		begin := time.Now()
		c, err := connect(t, host, container, h, Spec{Machine: fmt.Sprint("web-", n), Kind: Veth})
		took = append(took, time.Since(begin))
		must.NoError(t, err)
		must.NoError(t, c.Warning)
		must.Eq(t, "host0", c.Interface)
		must.Len(t, 2, c.Gateways)
		for i, address := range c.addresses() {
			said := container.Hear("udp", net.JoinHostPort(c.Gateways[i].String(), "9000"))
			must.Eq(t, "host from "+address.Addr().String(), said)
		}
	}
	t.Log("took", took)
	must.Len(t, starts, owners(t, host))
	disconnectAll(t, host, "web-0")
	disconnectAll(t, host, "web-0")
	must.SliceNotContains(t, owners(t, host), "web-0")
}

func owners(t *testing.T, host *networktest.Space) (list []string) {
	t.Helper()
	var err error
	host.Do(func() { list, err = Owners() })
	must.NoError(t, err)
	return list
}

func TestVethAgain(t *testing.T) {
	host, h := networktest.New(t), newHost(t, "10.213.0.0/29") // room for two pairs
	first, err := connect(t, host, networktest.Bare(t), h, Spec{Machine: "web", Kind: Veth})
	must.NoError(t, err)
	again, err := connect(t, host, networktest.Bare(t), h, Spec{Machine: "web", Kind: Veth, Name: "eth0"})
	must.NoError(t, err)
	must.Eq(t, first.MAC, again.MAC)
	must.Eq(t, "eth0", again.Interface)
	must.NotEq(t, first.IPv4, again.IPv4) // the first address was in use when this one was chosen
	_, err = connect(t, host, networktest.Bare(t), h, Spec{Machine: "api", Kind: Veth})
	must.NoError(t, err)
	_, err = connect(t, host, networktest.Bare(t), h, Spec{Machine: "full", Kind: Veth})
	must.EqError(t, err, "connect machine full by veth: every address of the pool is in use; name a larger IPv4 network in the plugin's config")
	must.Eq(t, []string{"api", "web"}, owners(t, host))
}

// TestVethWithoutEcho uses a host whose firewall drops the answers of containers.
func TestVethWithoutEcho(t *testing.T) {
	host, h, container := networktest.New(t), newHost(t, "10.213.0.0/16"), networktest.Bare(t)
	container.Do(func() { _ = os.WriteFile("/proc/sys/net/ipv4/icmp_echo_ignore_all", []byte("1"), 0o644) })
	begin := time.Now()
	c, err := connect(t, host, container, h, Spec{Machine: "web", Kind: Veth})
	must.NoError(t, err)
	must.ErrorContains(t, c.Warning, "(does a firewall of the host drop the answer?)")
	must.Less(t, 2*time.Second, time.Since(begin))
}

// TestRouterAdvertisement checks that a container cannot become the host's router.
func TestRouterAdvertisement(t *testing.T) {
	host, h := networktest.New(t), newHost(t, "10.213.0.0/16")
	c, err := connect(t, host, networktest.Bare(t), h, Spec{Machine: "web", Kind: Veth})
	must.NoError(t, err)
	must.Eq(t, "0\n", host.Run(t, "cat", "/proc/sys/net/ipv6/conf/"+c.Link+"/accept_ra"))
}

func TestSettings(t *testing.T) {
	container := networktest.Bare(t)
	must.NoError(t, Settings(open(t, container)))
	must.Eq(t, "0\n0\t2147483647\n", container.Run(t, "cat", "/proc/sys/net/ipv4/ip_unprivileged_port_start", "/proc/sys/net/ipv4/ping_group_range"))
	must.StrContains(t, container.Run(t, "ip", "link", "show", "lo"), "LOOPBACK,UP")

	// What the job of an earlier task of the group has set stays.
	container.Do(func() {
		must.NoError(t, os.WriteFile("/proc/sys/net/ipv4/ip_unprivileged_port_start", []byte("1024"), 0o644))
	})
	must.NoError(t, Settings(open(t, container)))
	must.Eq(t, "1024\n", container.Run(t, "cat", "/proc/sys/net/ipv4/ip_unprivileged_port_start"))
}

func TestFind(t *testing.T) {
	host, h, container := networktest.New(t), newHost(t, "10.213.0.0/16"), networktest.Bare(t)
	none, err := ReadConnection(open(t, container))
	must.NoError(t, err)
	must.Eq(t, Connection{}, none)
	c, err := connect(t, host, container, h, Spec{Machine: "web", Kind: Veth})
	must.NoError(t, err)
	found, err := Find(open(t, container), Spec{Machine: "web", Kind: Veth})
	must.NoError(t, err)
	must.Eq(t, c, found)
}

func TestNames(t *testing.T) {
	seen := map[string]bool{}
	for n := range 10_000 {
		name := LinkName(fmt.Sprintf("nomad-nspawn-web-%d", n))
		must.Eq(t, 15, len(name))
		must.False(t, seen[name])
		seen[name] = true
	}
}

func TestPool(t *testing.T) {
	h := newHost(t, "10.213.0.0/16")
	must.Eq(t, 16384, h.size())
	last := h.pair(h.size() - 1)
	must.Eq(t, "10.213.255.253/30", last.host4.String())
	must.Eq(t, "10.213.255.254/30", last.container4.String())
	must.True(t, last.host6.Addr().IsPrivate())
	index, ok := h.indexOf(last.container4.Addr())
	must.True(t, ok)
	must.Eq(t, h.size()-1, index)
	_, err := New(netip.MustParsePrefix("10.0.0.0/8"), "")
	must.ErrorContains(t, err, "want an IPv4 network of /16 to /30")

	host := networktest.New(t)
	choose := func(wanted netip.Prefix) (pool netip.Prefix, err error) {
		host.Do(func() { pool, err = ChoosePool(wanted) })
		return pool, err
	}
	pool, err := choose(netip.Prefix{})
	must.NoError(t, err)
	must.Eq(t, testPool, pool)
	_, err = connect(t, host, networktest.Bare(t), h, Spec{Machine: "web", Kind: Veth})
	must.NoError(t, err)
	pool, err = choose(netip.Prefix{}) // links of ours do not change the choice
	must.NoError(t, err)
	must.Eq(t, testPool, pool)
	host.IP(t, "link add x type veth peer name y", "link set x up", "link set y up", "route add 10.213.7.0/24 dev x")
	pool, err = choose(netip.Prefix{})
	must.NoError(t, err)
	must.Eq(t, "172.29.0.0/16", pool.String())
	_, err = choose(testPool)
	must.ErrorContains(t, err, "the host routes parts of [10.213.0.0/16] elsewhere")
}

// serveDHCP offers leases of 10.66.0.0/24 on an interface in a namespace, and reports
// each request for an address.
func serveDHCP(t *testing.T, s *networktest.Space, link string) <-chan string {
	t.Helper()
	requests := make(chan string, 100)
	handle := func(conn net.PacketConn, peer net.Addr, m *dhcpv4.DHCPv4) {
		kind := dhcpv4.MessageTypeOffer
		if m.MessageType() == dhcpv4.MessageTypeRequest {
			kind = dhcpv4.MessageTypeAck
			requests <- string(m.Options.Get(dhcpv4.OptionClientIdentifier)[1:]) + " " + m.RequestedIPAddress().String()
		}
		answer, err := dhcpv4.NewReplyFromRequest(m, dhcpv4.WithMessageType(kind), dhcpv4.WithYourIP(net.IPv4(10, 66, 0, 50)),
			dhcpv4.WithNetmask(net.CIDRMask(24, 32)), dhcpv4.WithRouter(net.IPv4(10, 66, 0, 1)), dhcpv4.WithLeaseTime(3600),
			dhcpv4.WithServerIP(net.IPv4(10, 66, 0, 1)), dhcpv4.WithOption(dhcpv4.OptServerIdentifier(net.IPv4(10, 66, 0, 1))),
			dhcpv4.WithDNS(net.IPv4(10, 66, 0, 9)), dhcpv4.WithOption(dhcpv4.OptDomainName("lan.example")))
		if err == nil {
			_, err = conn.WriteTo(answer.ToBytes(), &net.UDPAddr{IP: net.IPv4bcast, Port: 68})
		}
		if err != nil {
			t.Error(err)
		}
	}
	var server *server4.Server
	var err error
	s.Do(func() { server, err = server4.NewServer(link, &net.UDPAddr{Port: 67}, handle) })
	must.NoError(t, err)
	t.Cleanup(func() { server.Close() })
	go func() { _ = server.Serve() }()
	return requests
}

func TestBridge(t *testing.T) {
	host, h, container := networktest.New(t), newHost(t, "10.213.0.0/16"), networktest.Bare(t)
	_, err := connect(t, host, container, h, Spec{Machine: "web", Kind: Bridge, Of: "br0"})
	must.ErrorContains(t, err, "connect machine web by bridge br0: find bridge br0 of the host (does it exist?)")
	host.IP(t, "link add br0 type bridge", "link set br0 up", "addr add 10.66.0.1/24 dev br0")
	requests := serveDHCP(t, host, "br0")
	c, err := connect(t, host, container, h, Spec{Machine: "web", Kind: Bridge, Of: "br0"})
	must.NoError(t, err)
	must.Eq(t, "web 10.66.0.50", <-requests)
	must.Eq(t, "10.66.0.50/24", c.IPv4.String())
	must.Eq(t, "[10.66.0.1] [10.66.0.9] [lan.example]", fmt.Sprint(c.Gateways, c.Servers, c.Searches))
	host.Serve(t, ":9000", "host")
	must.Eq(t, "host from 10.66.0.50", container.Hear("tcp", "10.66.0.1:9000"))
	must.StrContains(t, container.Run(t, "ip", "-4", "addr", "show", "dev", "host0"), "valid_lft 35")

	// A plugin knows these fields after a restart.
	container.IP(t, "addr change 10.66.0.50/24 dev host0 valid_lft 100 preferred_lft 100")
	until, err := Renew(t.Context(), open(t, container), "web", Connection{Interface: c.Interface, MAC: c.MAC, IPv4: c.IPv4})
	must.NoError(t, err)
	must.Eq(t, "web 10.66.0.50", <-requests)
	must.Greater(t, 59*time.Minute, time.Until(until))
	must.StrContains(t, container.Run(t, "ip", "-4", "addr", "show", "dev", "host0"), "valid_lft 35")
	_, err = Renew(t.Context(), open(t, container), "web", Connection{Interface: c.Interface, MAC: c.MAC, IPv4: netip.MustParsePrefix("10.66.0.51/24")})
	must.ErrorContains(t, err, "the server gives 10.66.0.50/24 instead")
	disconnectAll(t, host, "web")
	must.SliceEmpty(t, owners(t, host))
}

func TestStatic(t *testing.T) {
	host, h := networktest.New(t), newHost(t, "10.213.0.0/16")
	host.IP(t, "link add eth7 type veth peer name peer", "link set peer up", "link set eth7 up")
	for n, kind := range []Kind{Ipvlan, Macvlan, Interface} {
		container := networktest.Bare(t)
		s := Spec{
			Machine: "web", Kind: kind, Of: "eth7",
			Address: netip.MustParsePrefix(fmt.Sprintf("10.77.%d.5/24", n)), Gateway: netip.MustParseAddr(fmt.Sprintf("10.77.%d.1", n)),
		}
		c, err := connect(t, host, container, h, s)
		if kind == Ipvlan && errors.Is(err, unix.EOPNOTSUPP) {
			t.Log(err) // this kernel does not support it, for example where disposable hosts are made
			continue
		}
		must.NoError(t, err)
		must.Eq(t, []string{"iv-eth7", "mv-eth7", "eth7"}[n], c.Interface)
		must.StrContains(t, container.Run(t, "ip", "addr", "show", "dev", c.Interface), s.Address.String())
		must.StrContains(t, container.Run(t, "ip", "route"), "default via "+s.Gateway.String())
	}
}

// TestNoServer checks that the deadline of the caller ends the wait.
func TestNoServer(t *testing.T) {
	host, h, container := networktest.New(t), newHost(t, "10.213.0.0/16"), networktest.Bare(t)
	host.IP(t, "link add br0 type bridge", "link set br0 up")
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	namespace := open(t, container)
	var err error
	host.Do(func() { _, err = h.Connect(ctx, namespace, Spec{Machine: "web", Kind: Bridge, Of: "br0"}) })
	must.ErrorIs(t, err, context.DeadlineExceeded)
	must.ErrorContains(t, err, "get an address for host0 by DHCP (does a server answer there?")
}
