package ports

import (
	"testing"

	"github.com/shoenig/test/must"

	"nomad-driver-nspawn/e2e/host/hosttest"
)

// TestHostTable compares the table with the output of nft(8) of the release.
func TestHostTable(t *testing.T) {
	hosttest.Require(t)
	w := newWorld(t)
	must.NoError(t, w.add("web", Mapping{Host: 8080, Container: 80}))
	text := w.host.Run(t, "nft", "list", "table", "inet", TableName)
	t.Log(text)
	for _, rule := range []string{
		"fib daddr type != local return",
		"dnat ip to meta l4proto . ip daddr . th dport map @ports4",
		"dnat ip6 to meta l4proto . ip6 daddr . th dport map @ports6",
		"map @any4", "map @any6",
		"ip saddr @machines4 ip daddr != @machines4 masquerade",
		"ip6 saddr ::1 ip6 daddr @machines6 masquerade",
		"ip saddr . ip daddr @self4 masquerade",
		"ct status dnat ip daddr @direct4 masquerade",
		`iifname != "lo" ip daddr 127.0.0.0/8 drop`,
		`iifname "nv-*" fib saddr . iif `,
		`tcp . 8080 comment "web" : 10.99.1.2 . 80`,
		`udp . 8080 comment "web" : fd00:1::2 . 80`,
		`10.99.1.2 comment "web"`,
	} {
		must.StrContains(t, text, rule)
	}
}
