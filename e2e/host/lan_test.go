package host

import (
	"slices"
	"sync"
	"testing"

	"github.com/shoenig/test/must"
)

// TestLAN boots three hosts, two of them on one LAN. The LAN is removed with the last of
// these.
func TestLAN(t *testing.T) {
	requireRoot(t)
	const shared = "testlan"
	hosts := make([]*Host, 3)
	var together sync.WaitGroup
	for i, lan := range []string{shared, shared, shared + "2"} {
		together.Go(func() { hosts[i] = upForTest(t, Options{LAN: lan}) })
	}
	together.Wait()
	must.SliceNotContains(t, hosts, nil)
	first, second, apart := hosts[0], hosts[1], hosts[2]
	output(t, second, "sh", "-c", "systemd-socket-activate -l 7000 --inetd -a echo hello >/dev/null 2>&1 & until ss -ltn | grep -q :7000; do sleep 0.05; done")
	for _, address := range second.LANAddrs() {
		url := "telnet://" + address.String() + ":7000"
		if address.Is6() {
			url = "telnet://[" + address.String() + "]:7000"
		}
		must.Eq(t, "hello", output(t, first, "curl", "-sS", "--max-time", "5", url))
		must.Error(t, apart.Command(t.Context(), "curl", "-sS", "--max-time", "1", url).Run())
	}

	left := takeInventory(t, first)
	must.SliceContains(t, left.left(), "port")
	must.NoError(t, first.Down())
	must.Eq(t, []string{"LAN"}, left.left())
	must.Eq(t, second.LANAddrs()[0].String(), output(t, second, "sh", "-c", "ip -4 -o address show dev lan0 | sed 's:.*inet ::; s:/.*::'"))
	last := takeInventory(t, second)
	must.NoError(t, second.Down())
	must.False(t, slices.Contains(last.left(), "LAN"))

	_, err := Up(t.Context(), Options{LAN: "far-too-long-a-name"})
	must.ErrorContains(t, err, `LAN "far-too-long-a-name"`)
}
