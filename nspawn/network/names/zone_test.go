package names

import (
	"net/netip"
	"testing"

	"github.com/shoenig/test/must"
)

func TestWithOthers(t *testing.T) {
	own := Hosts{
		Hostname: "web.example.net", Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.1")},
		Extra: []Extra{{Name: "cache", Address: netip.MustParseAddr("198.51.100.7")}},
	}
	member := func(name, address string) string {
		return Hosts{Hostname: name, Addresses: []netip.Addr{netip.MustParseAddr(address)}}.Own()
	}
	const head = "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n" +
		"192.0.2.1 web.example.net web\n198.51.100.7 cache\n"
	text := own.String()
	for _, c := range []struct {
		members []string
		want    string
	}{
		{nil, ""},
		{[]string{member("db", "192.0.2.2")}, "192.0.2.2 db\n"},
		{[]string{member("db.lan", "192.0.2.2"), member("db", "192.0.2.3")}, "192.0.2.2 db.lan\n192.0.2.2 db\n"},
		// Nobody takes a name of the host's, of the machine, of its extra hosts, or of an earlier member.
		{[]string{member("LocalHost", "192.0.2.2"), member("WEB", "192.0.2.2"), member("cache", "192.0.2.2"), member("cache.lan", "192.0.2.2")}, "192.0.2.2 cache.lan\n"},
		{[]string{"192.0.2.2 db\n2001:db8::2 db\n", ""}, "192.0.2.2 db\n2001:db8::2 db\n"},
		{[]string{"192.0.2.2"}, ""}, // a line that was not written whole
		{nil, ""},
	} {
		text = WithOthers(text, c.members)
		want := head
		if c.want != "" {
			want += othersBegin + c.want
		}
		must.Eq(t, want, text)
	}
	must.Eq(t, "", Hosts{Hostname: "web"}.Own())
}
