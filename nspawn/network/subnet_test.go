package network

import (
	"fmt"
	"net"
	"net/netip"
	"testing"

	"github.com/shoenig/test/must"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func TestGuestAddress(t *testing.T) {
	for _, c := range []struct {
		host string
		has  string
		want string
	}{
		{"192.168.5.1/28", "", "192.168.5.2/28"},
		{"192.168.5.193/28", "", "192.168.5.194/28"},
		{"192.168.5.14/28", "", "192.168.5.1/28"}, // 15 is broadcast
		{"10.0.0.254/24", "", "10.0.0.1/24"},
		{"10.0.0.255/16", "", "10.0.1.0/16"},
		{"10.0.0.1/30", "", "10.0.0.2/30"},
		{"10.0.0.2/30", "", "10.0.0.1/30"},
		{"10.0.0.4/31", "", "10.0.0.5/31"},
		{"10.0.0.5/31", "", "10.0.0.4/31"},
		{"10.0.0.5/32", "", ""},
		{"255.255.255.254/31", "", "255.255.255.255/31"},
		{"192.168.5.1/28", "192.168.5.9/28", "192.168.5.9/28"},
		{"192.168.5.1/28", "192.168.6.9/28", "192.168.5.2/28"}, // of another subnet
		{"192.168.5.1/28", "192.168.5.9/24", "192.168.5.2/28"}, // of a wider one
		{"192.168.5.1/28", "192.168.5.1/28", "192.168.5.2/28"}, // the host's
	} {
		t.Run(fmt.Sprint(c.host, " has ", c.has), func(t *testing.T) {
			var has []netip.Prefix
			if c.has != "" {
				has = append(has, netip.MustParsePrefix("fd00::1/64"), netip.MustParsePrefix(c.has))
			}
			got, err := guestAddress(netip.MustParsePrefix(c.host), has)
			if c.want == "" {
				must.ErrorContains(t, err, "no free address in the subnet of "+c.host)
				return
			}
			must.NoError(t, err)
			must.Eq(t, c.want, got.String())
		})
	}
}

// FuzzGuestAddress holds for every subnet: the address is in it, usable, and
// not the host's.
func FuzzGuestAddress(f *testing.F) {
	f.Add([]byte{192, 168, 1, 1}, uint8(28))
	f.Fuzz(func(t *testing.T, address []byte, bits uint8) {
		ip, ok := netip.AddrFromSlice(address)
		if !ok || !ip.Is4() || bits > 32 {
			t.Skip()
		}
		host := netip.PrefixFrom(ip, int(bits))
		got, err := guestAddress(host, nil)
		if bits == 32 {
			must.Error(t, err)
			return
		}
		must.NoError(t, err)
		must.NotEq(t, host.Addr(), got.Addr())
		must.Eq(t, host.Masked(), got.Masked())
		must.True(t, usable(host, got.Addr()))
	})
}

func TestGlobal(t *testing.T) {
	for _, c := range []struct {
		address      string
		scope, flags int
		want         bool
	}{
		{"192.168.1.1/28", unix.RT_SCOPE_UNIVERSE, unix.IFA_F_PERMANENT, true},
		{"fd00::1/64", unix.RT_SCOPE_UNIVERSE, 0, true},
		{"2001:db8::1/64", unix.RT_SCOPE_UNIVERSE, unix.IFA_F_DEPRECATED, true},
		{"fd00::1/64", unix.RT_SCOPE_UNIVERSE, unix.IFA_F_TENTATIVE, false},
		{"fd00::1/64", unix.RT_SCOPE_UNIVERSE, unix.IFA_F_DADFAILED, false},
		{"169.254.3.4/16", unix.RT_SCOPE_LINK, 0, false},
		{"169.254.3.4/16", unix.RT_SCOPE_UNIVERSE, 0, false}, // as given by hand
		{"fe80::1/64", unix.RT_SCOPE_LINK, 0, false},
		{"127.0.0.1/8", unix.RT_SCOPE_HOST, 0, false},
	} {
		ip, subnet, err := net.ParseCIDR(c.address)
		must.NoError(t, err)
		subnet.IP = ip // may take 16 bytes for an IPv4 address
		got, ok := global(netlink.Addr{IPNet: subnet, Scope: c.scope, Flags: c.flags})
		must.Eq(t, c.want, ok, must.Sprint(c))
		if ok {
			must.Eq(t, c.address, got.String())
		}
	}
	_, ok := global(netlink.Addr{})
	must.False(t, ok)
}
