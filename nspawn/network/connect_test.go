package network

import (
	"os"
	"testing"

	"github.com/google/nftables"
	"github.com/shoenig/test/must"

	"nomad-driver-nspawn/e2e/host/networktest"
	"nomad-driver-nspawn/nspawn/network/links"
	"nomad-driver-nspawn/nspawn/network/ports"
)

func noZones(string) bool { return false }

func namespaceOf(t *testing.T, space *networktest.Space) *os.File {
	t.Helper()
	namespace, err := os.Open(space.Path)
	must.NoError(t, err)
	t.Cleanup(func() { namespace.Close() })
	return namespace
}

func veth(machine string, mappings ...ports.Mapping) Spec {
	return Spec{Spec: links.Spec{Machine: machine, Kind: links.Veth}, Mappings: mappings, Alive: func(string) bool { return true }}
}

// TestConnect runs two machines one after another that use the same port.
func TestConnect(t *testing.T) {
	host, h := networktest.Host(t), New()
	host.IP(t, "link set lo up")
	port := ports.Mapping{Host: 8080, Container: 80}
	web, api := networktest.Bare(t), networktest.Bare(t)

	must.NoError(t, h.Reserve("web", []ports.Mapping{port}))
	must.ErrorContains(t, h.Reserve("api", []ports.Mapping{port}), "another program uses it")
	c, err := h.Connect(t.Context(), namespaceOf(t, web), veth("web", port))
	must.NoError(t, err)
	must.NoError(t, c.Warning)
	web.Serve(t, ":80", "web")
	must.StrHasPrefix(t, "web from ", host.Hear("tcp", "127.0.0.1:8080"))
	owners, err := h.Owners()
	must.NoError(t, err)
	must.Eq(t, []string{"web", "web"}, owners) // one is for a port, one for a link

	wanted := veth("api", port)
	_, err = h.Connect(t.Context(), namespaceOf(t, api), wanted)
	must.ErrorContains(t, err, "port 8080 of the host is forwarded to machine web")
	wanted.Alive = func(machine string) bool { return machine != "web" }
	_, err = h.Connect(t.Context(), namespaceOf(t, api), wanted)
	must.NoError(t, err)
	api.Serve(t, ":80", "api")
	must.StrHasPrefix(t, "api from ", host.Hear("tcp", "127.0.0.1:8080"))

	for _, machine := range []string{"web", "api", "never"} {
		must.NoError(t, h.Remove(t.Context(), machine, noZones))
	}
	owners, err = h.Owners()
	must.NoError(t, err)
	must.SliceEmpty(t, owners)
	must.NoError(t, h.Reserve("next", []ports.Mapping{port}))
	must.NoError(t, h.Remove(t.Context(), "next", noZones))
}

// TestRestore runs a plugin that follows another one, after someone has flushed all
// rules.
func TestRestore(t *testing.T) {
	host, h := networktest.Host(t), New()
	host.IP(t, "link set lo up")
	spec := veth("web", ports.Mapping{Host: 8081, Container: 80})
	web := networktest.Bare(t)
	c, err := h.Connect(t.Context(), namespaceOf(t, web), spec)
	must.NoError(t, err)
	web.Serve(t, ":80", "web")
	rules, err := nftables.New()
	must.NoError(t, err)
	rules.FlushRuleset()
	must.NoError(t, rules.Flush())
	next := New()
	must.NoError(t, next.Restore(t.Context(), spec, c))
	must.StrHasPrefix(t, "web from ", host.Hear("tcp", "127.0.0.1:8081"))
	must.NoError(t, next.Remove(t.Context(), "web", noZones))
}

// TestGuest runs a guest that gives itself an address, at first one of another network.
func TestGuest(t *testing.T) {
	host, h, guest := networktest.Host(t), New(), networktest.Bare(t)
	host.IP(t, "link set lo up")
	host.IP(t, "link add ve-guest type veth peer name host0 netns "+guest.Path)
	t.Cleanup(func() { host.IP(t, "link del ve-guest") })
	host.IP(t, "addr add 192.168.78.1/28 dev ve-guest")
	host.IP(t, "link set ve-guest up")
	guest.IP(t, "link set host0 up")
	guest.IP(t, "addr add 192.0.2.1/24 dev host0")
	guest.IP(t, "addr add 192.168.78.1/32 dev host0")
	connected := make(chan error, 1)
	spec := veth("guest", ports.Mapping{Host: 8082, Container: 80})
	namespace := namespaceOf(t, guest)
	go host.Twin(t).Do(func() { connected <- h.ConnectGuest(t.Context(), namespace, spec) })
	guest.IP(t, "addr add 192.168.78.2/28 dev host0")
	must.NoError(t, <-connected)
	guest.IP(t, "addr del 192.168.78.1/32 dev host0")
	guest.IP(t, "route add default via 192.168.78.1")
	guest.Serve(t, ":80", "guest")
	must.StrHasPrefix(t, "guest from ", host.Hear("tcp", "127.0.0.1:8082"))
	must.NoError(t, h.Remove(t.Context(), "guest", noZones))
}
