package names

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/shoenig/test/must"
)

func TestResolvConf(t *testing.T) {
	const stub = "# by systemd-resolved\nnameserver 127.0.0.53\noptions edns0 trust-ad\nsearch lan\n"
	const uplink = "nameserver 10.0.0.1\nnameserver fe80::1%2\nsearch lan\n"
	for name, test := range map[string]struct {
		host    Host
		dns     DNS
		private bool
		want    string
		none    []string // servers in the NoServerError
	}{
		"host's network keeps the stub": {
			host: Host{stub, uplink}, want: stub,
		},
		"private asks the uplink's servers": {
			host: Host{stub, uplink}, private: true, want: "nameserver 10.0.0.1\nsearch lan\n",
		},
		"dnsmasq on the host beside a real server": {
			host: Host{"nameserver 127.0.0.1\nnameserver 9.9.9.9 # quad9\noptions rotate\n", uplink}, private: true,
			want: "nameserver 9.9.9.9\noptions rotate\n",
		},
		"stub of IPv6, mapped, extra and old spelling": {
			host:    Host{"nameserver ::1\nnameserver ::ffff:127.0.0.1\nnameserver 127.0.0.54\nnameserver 127.1\nnameserver 0.0.0.0\nnameserver ::\n", uplink},
			private: true, want: "nameserver 10.0.0.1\nsearch lan\n",
		},
		"nothing else is left": {
			host: Host{stub, "nameserver 127.0.0.1\n"}, private: true,
			want: "search lan\noptions edns0 trust-ad\n", none: []string{"127.0.0.1", "127.0.0.53"},
		},
		"no file at all": {private: true, none: []string{}},
		"job's servers, the rest of the host's": {
			host: Host{stub, uplink}, dns: DNS{Servers: []string{"127.0.0.1", "1.1.1.1"}}, private: true,
			want: "nameserver 127.0.0.1\nnameserver 1.1.1.1\nsearch lan\noptions edns0 trust-ad\n",
		},
		"job's searches end domain, too": {
			host: Host{"domain lan\nsearch a b\nnameserver 9.9.9.9\nsortlist 10.0.0.0\n", ""},
			dns:  DNS{Searches: []string{"x.example", "y.example"}, Options: []string{"ndots:2"}},
			want: "nameserver 9.9.9.9\nsearch x.example y.example\noptions ndots:2\nsortlist 10.0.0.0\n",
		},
		"a job cannot begin a line": {
			host: Host{"nameserver 9.9.9.9\n", ""}, dns: DNS{Options: []string{"ndots:1\nnameserver 6.6.6.6"}},
			want: "nameserver 9.9.9.9\noptions ndots:1 nameserver 6.6.6.6\n",
		},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := ResolvConf(test.host, test.dns, test.private)
			must.Eq(t, test.want, got)
			var none *NoServerError
			must.Eq(t, test.none != nil, errors.As(err, &none), must.Sprint(err))
			if none != nil {
				must.SliceEqOp(t, test.none, none.Servers)
				t.Log(err)
			}
		})
	}
}

func FuzzResolvConf(f *testing.F) {
	f.Add("nameserver 127.0.0.53\n", "nameserver 10.0.0.1\n", "a\nb")
	f.Add("nameserver\t::1%lo\r\nsearch x\n", "nameserver 0177.1\n", "")
	f.Fuzz(func(t *testing.T, own, uplink, option string) {
		text, err := ResolvConf(Host{own, uplink}, DNS{Options: []string{option}}, true)
		found := 0
		for line := range strings.Lines(text) {
			server, is := strings.CutPrefix(line, "nameserver ")
			if !is {
				continue
			}
			found++
			address, err := netip.ParseAddr(strings.TrimSuffix(server, "\n"))
			if err != nil || address.Unmap().IsLoopback() {
				t.Errorf("%q is in reach of nobody", line)
			}
		}
		if (found == 0) != (err != nil) {
			t.Errorf("%d servers, but error %v", found, err)
		}
	})
}

func addresses(list ...string) (all []netip.Addr) {
	for _, a := range list {
		all = append(all, netip.MustParseAddr(a))
	}
	return all
}

func TestHosts(t *testing.T) {
	db, err := ParseExtra("db.example:10.1.2.3")
	must.NoError(t, err)
	host, err := ParseExtra("host.internal:host-gateway")
	must.NoError(t, err)
	six, err := ParseExtra("six:[fd00::5]")
	must.NoError(t, err)
	text := Hosts{
		Hostname: "web.example", Addresses: addresses("10.99.0.2", "fd00::2"), Gateways: addresses("10.99.0.1"),
		Extra: []Extra{db, host, six},
	}.String()
	must.Eq(t, `127.0.0.1 localhost
::1 localhost ip6-localhost ip6-loopback
10.99.0.2 web.example web
fd00::2 web.example web
10.1.2.3 db.example db
10.99.0.1 host.internal host
fd00::5 six
`, text)
	must.StrContains(t, Hosts{Hostname: "alone"}.String(), "\n127.0.1.1 alone\n")
	must.StrNotContains(t, Hosts{}.String(), "127.0.1.1")
}

func TestParseExtraRefuses(t *testing.T) {
	for _, entry := range []string{"", "db", "db:", ":10.0.0.1", "db:localhost", "a b:10.0.0.1", "a\n:10.0.0.1", "-a:1.1.1.1", "a..b:1.1.1.1", "a:fe80::1%eth0", strings.Repeat("a", 65) + ":1.1.1.1"} {
		_, err := ParseExtra(entry)
		must.ErrorContains(t, err, "host", must.Sprintf("%q", entry))
	}
}

func FuzzParseExtra(f *testing.F) {
	f.Add("db:10.0.0.1")
	f.Add("six:[fd00::1%eth0\n]")
	f.Fuzz(func(t *testing.T, entry string) {
		extra, err := ParseExtra(entry)
		if err != nil {
			return
		}
		text := Hosts{Extra: []Extra{extra}, Gateways: addresses("10.0.0.1")}.String()
		if lines := strings.Count(text, "\n"); lines != 3 {
			t.Errorf("%q gives %d lines:\n%s", entry, lines, text)
		}
	})
}

func TestRewrite(t *testing.T) {
	path := filepath.Join(t.TempDir(), "hosts")
	file, err := os.Create(path)
	must.NoError(t, err)
	defer file.Close()
	for _, text := range []string{"a long text\n", "short\n", "", "again\n"} {
		must.NoError(t, Rewrite(file, text))
		got, err := os.ReadFile(path)
		must.NoError(t, err)
		must.Eq(t, text, string(got))
	}
	file.Close()
	must.ErrorContains(t, Rewrite(file, "x"), "rewrite "+path)
}
