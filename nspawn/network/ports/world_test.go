package ports

import (
	"fmt"
	"net/netip"
	"testing"

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

// world is a host with two containers and another machine on its network.
type world struct {
	host, other, web, sibling *networktest.Space
	table                     *Table
	machines                  map[string]Machine
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{host: networktest.New(t), other: networktest.New(t), web: networktest.New(t), sibling: networktest.New(t), machines: map[string]Machine{}}
	w.host.Run(t, "sh", "-c", "echo 1 >/proc/sys/net/ipv4/ip_forward; echo 1 >/proc/sys/net/ipv6/conf/all/forwarding")
	w.host.Link(t, "up0", w.other, "eth0")
	w.host.IP(t, "addr add 203.0.113.1/24 dev up0", "addr add 203.0.113.7/24 dev up0", "addr add 2001:db8::1/64 dev up0 nodad")
	w.other.IP(t, "addr add 203.0.113.2/24 dev eth0", "addr add 2001:db8::2/64 dev eth0 nodad")
	w.container(t, "web", w.web, 1)
	w.container(t, "sibling", w.sibling, 2)
	for address, s := range map[string]*networktest.Space{
		"203.0.113.1": w.other, "2001:db8::1": w.other,
		"10.99.1.1": w.web, "fd00:1::1": w.web, "10.99.2.1": w.sibling, "fd00:2::1": w.sibling,
	} {
		s.AwaitPeer(t, address)
	}
	var err error
	w.host.Do(func() { w.table, err = Open() })
	must.NoError(t, err)
	t.Cleanup(func() { w.table.Close() })
	return w
}

// container connects a namespace to the host as the driver does.
func (w *world) container(t *testing.T, name string, s *networktest.Space, n int) {
	t.Helper()
	link := "nv-" + name
	w.host.Link(t, link, s, "host0")
	w.host.IP(t, fmt.Sprintf("addr add 10.99.%d.1/30 dev %s", n, link), fmt.Sprintf("addr add fd00:%d::1/64 dev %s nodad", n, link))
	s.IP(t, fmt.Sprintf("addr add 10.99.%d.2/30 dev host0", n), fmt.Sprintf("addr add fd00:%d::2/64 dev host0 nodad", n),
		fmt.Sprintf("route add default via 10.99.%d.1", n), fmt.Sprintf("-6 route add default via fd00:%d::1", n))
	w.machines[name] = Machine{
		Name: name, Link: link,
		IPv4: netip.MustParseAddr(fmt.Sprintf("10.99.%d.2", n)), IPv6: netip.MustParseAddr(fmt.Sprintf("fd00:%d::2", n)),
	}
}

// add adds the machine with mappings, in the host's namespace.
func (w *world) add(name string, mappings ...Mapping) (err error) {
	m := w.machines[name]
	m.Mappings = mappings
	w.host.Do(func() { err = w.table.Add(m) })
	return err
}

func (w *world) remove(t *testing.T, name string) {
	t.Helper()
	var err error
	w.host.Do(func() { _, err = w.table.Remove(name) })
	must.NoError(t, err)
}

func (w *world) forget(t *testing.T, name string, mappings ...Mapping) {
	t.Helper()
	m := w.machines[name]
	m.Mappings = mappings
	var err error
	w.host.Do(func() { err = ForgetFlows(m) })
	must.NoError(t, err)
}
