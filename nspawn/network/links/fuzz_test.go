package links

import (
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/shoenig/test/must"
	"golang.org/x/net/ipv4"

	"nomad-driver-nspawn/nspawn/network/names"
)

// FuzzLease accepts whatever a DHCP server may answer: any machine of the network can be
// one. Nothing of it is more than a word in resolv.conf.
func FuzzLease(f *testing.F) {
	for _, options := range [][]dhcpv4.Modifier{
		{dhcpv4.WithNetmask(net.CIDRMask(24, 32)), dhcpv4.WithRouter(net.IPv4(10, 0, 0, 1)), dhcpv4.WithDNS(net.IPv4(10, 0, 0, 1)), dhcpv4.WithLeaseTime(60)},
		{dhcpv4.WithNetmask(net.IPMask{255, 0, 255, 0}), dhcpv4.WithLeaseTime(0)},
		{dhcpv4.WithNetmask(net.CIDRMask(32, 32)), dhcpv4.WithOption(dhcpv4.OptDomainName("a\nnameserver 192.0.2.6")), dhcpv4.WithLeaseTime(1<<32 - 1)},
		{dhcpv4.WithNetmask(net.CIDRMask(8, 32)), dhcpv4.WithDomainSearchList("a\nb", "c d")},
	} {
		answer, err := dhcpv4.New(append(options, dhcpv4.WithYourIP(net.IPv4(10, 0, 0, 7)), dhcpv4.WithMessageType(dhcpv4.MessageTypeAck))...)
		must.NoError(f, err)
		f.Add(answer.ToBytes())
	}
	f.Fuzz(func(t *testing.T, packet []byte) {
		answer, err := dhcpv4.FromBytes(packet)
		if err != nil {
			return
		}
		var c Connection
		if c.accept(answer) != nil {
			return
		}
		must.True(t, c.IPv4.IsValid() && c.IPv4.Addr().Is4() && !c.IPv4.Addr().IsUnspecified() && c.IPv4.Bits() > 0, must.Sprint(c))
		must.True(t, time.Until(c.Expires) > 5*time.Second, must.Sprint(c.Expires))
		must.LessEq(t, 1, len(c.Gateways))
		text, _ := names.Resolver{Private: true}.With(c.Servers, c.Searches).Text()
		for line := range strings.Lines(text) {
			server, isServer := strings.CutPrefix(strings.TrimSuffix(line, "\n"), "nameserver ")
			address, err := netip.ParseAddr(server)
			if isServer && (err != nil || !address.Is4()) || !isServer && !strings.HasPrefix(line, "search ") {
				t.Errorf("%q is in resolv.conf", line)
			}
		}
	})
}

// FuzzEcho takes whatever comes to the raw socket of an echo.
func FuzzEcho(f *testing.F) {
	f.Add([]byte{0, 0, 0, 0, 0, 1, 0, 1}, true)
	f.Add([]byte{129, 0, 0, 0}, false)
	peer := &net.IPAddr{IP: net.IPv4(10, 0, 0, 7)}
	f.Fuzz(func(_ *testing.T, packet []byte, four bool) {
		protocol := 58
		if four {
			protocol = 1
		}
		_ = isAnswer(packet, protocol, ipv4.ICMPTypeEchoReply, peer, netip.MustParseAddr("10.0.0.7"))
	})
}
