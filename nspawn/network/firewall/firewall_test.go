package firewall

import (
	"context"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"

	"nomad-driver-nspawn/e2e/host/hosttest"
	"nomad-driver-nspawn/e2e/host/networktest"
)

func TestMain(m *testing.M) {
	hosttest.RunPrivateOutside(m, unix.CLONE_NEWNET)
}

var prefixes = []string{"nv-"}

// world is a host with two containers, and another machine on its network.
type world struct{ host, other, web, sibling *networktest.Space }

func newWorld(t *testing.T, host *networktest.Space) *world {
	t.Helper()
	w := &world{host, networktest.New(t), networktest.New(t), networktest.New(t)}
	w.host.Run(t, "sh", "-c", "echo 1 >/proc/sys/net/ipv4/ip_forward; echo 1 >/proc/sys/net/ipv6/conf/all/forwarding")
	for i, link := range []struct {
		name string
		end  *networktest.Space
	}{{"nv-web", w.web}, {"nv-sibling", w.sibling}, {"up0", w.other}} {
		n := i + 1
		host.Link(t, link.name, link.end, "eth0")
		t.Cleanup(func() { host.Run(t, "ip", "link", "del", link.name) })
		host.IP(t, fmt.Sprintf("addr add 10.98.%d.1/24 dev %s", n, link.name), fmt.Sprintf("addr add fd00:%d::1/64 dev %s nodad", n, link.name))
		link.end.IP(t, fmt.Sprintf("addr add 10.98.%d.2/24 dev eth0", n), fmt.Sprintf("addr add fd00:%d::2/64 dev eth0 nodad", n),
			fmt.Sprintf("route add default via 10.98.%d.1", n), fmt.Sprintf("-6 route add default via fd00:%d::1", n))
		link.end.Serve(t, ":80", link.name)
		link.end.AwaitPeer(t, fmt.Sprintf("10.98.%d.1", n))
		link.end.AwaitPeer(t, fmt.Sprintf("fd00:%d::1", n))
	}
	// To a firewall, this looks like a forwarded port.
	w.host.Run(t, "nft", "table inet forwarding { chain c { type nat hook prerouting priority -100; tcp dport 8080 meta nfproto ipv4 dnat ip to 10.98.1.2:80; }; }")
	t.Cleanup(func() { w.host.Run(t, "nft", "delete table inet forwarding") })
	return w
}

// passes returns which connections get through. Those that are expected to may take their
// time.
func (w *world) passes(expected string) string {
	var all []string
	for name, c := range map[string]struct {
		from             *networktest.Space
		network, address string
	}{
		"out4":      {w.web, "tcp", "10.98.3.2:80"},
		"out6":      {w.web, "udp", "[fd00:3::2]:80"},
		"sibling":   {w.web, "tcp", "10.98.2.2:80"},
		"forwarded": {w.other, "tcp", "10.98.3.1:8080"},
		"in":        {w.other, "tcp", "10.98.1.2:80"}, // no rule allows this
		"in6":       {w.other, "tcp", "[fd00:1::2]:80"},
	} {
		ask := c.from.Ask
		if slices.Contains(strings.Fields(strings.Trim(expected, "[]")), name) {
			ask = c.from.Hear
		}
		if ask(c.network, c.address) != "" {
			all = append(all, name)
		}
	}
	slices.Sort(all)
	return fmt.Sprint(all)
}

const wanted = "[forwarded out4 out6 sibling]"

func (w *world) open(t *testing.T) (findings []Finding) {
	t.Helper()
	var err error
	w.host.Do(func() { findings, err = Open(t.Context(), prefixes) })
	must.NoError(t, err)
	return findings
}

func (w *world) close(t *testing.T) {
	t.Helper()
	var err error
	w.host.Do(func() { err = Close(t.Context(), prefixes) })
	must.NoError(t, err)
}

// check opens the host's firewall twice, and then closes it.
func (w *world) check(t *testing.T, before string) {
	t.Helper()
	counter := regexp.MustCompile(`packets \d+ bytes \d+`)
	rules := func() string { return counter.ReplaceAllString(w.host.Run(t, "nft", "list", "ruleset"), "") }
	untouched := rules()
	must.Eq(t, before, w.passes(before))
	must.SliceEmpty(t, w.open(t))
	must.Eq(t, wanted, w.passes(wanted), must.Sprint(rules()))
	once := rules()
	begin := time.Now()
	must.SliceEmpty(t, w.open(t))
	t.Log("nothing to do in", time.Since(begin))
	must.Eq(t, once, rules())
	w.close(t)
	must.Eq(t, untouched, rules())
	must.Eq(t, before, w.passes(before))
	w.close(t)
}

// TestHostNative uses a firewall that an operator would write for nft(8).
func TestHostNative(t *testing.T) {
	hosttest.Require(t)
	w := newWorld(t, networktest.New(t))
	w.host.Run(t, "nft", `table inet filter { chain forward { type filter hook forward priority 0; policy drop; ct state invalid drop; }; }
		table bridge other { chain forward { type filter hook forward priority 0; policy drop; }; }`)
	w.check(t, "[]")
}

// docker holds the rules of dockerd 28 for forwarded packets.
const docker = `*filter
:INPUT ACCEPT [0:0]
:FORWARD DROP [0:0]
:OUTPUT ACCEPT [0:0]
:DOCKER - [0:0]
:DOCKER-BRIDGE - [0:0]
:DOCKER-CT - [0:0]
:DOCKER-FORWARD - [0:0]
:DOCKER-ISOLATION-STAGE-1 - [0:0]
:DOCKER-ISOLATION-STAGE-2 - [0:0]
:DOCKER-USER - [0:0]
-A FORWARD -j DOCKER-USER
-A FORWARD -j DOCKER-FORWARD
-A DOCKER ! -i docker0 -o docker0 -j DROP
-A DOCKER-BRIDGE -o docker0 -j DOCKER
-A DOCKER-CT -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A DOCKER-FORWARD -j DOCKER-CT
-A DOCKER-FORWARD -j DOCKER-ISOLATION-STAGE-1
-A DOCKER-FORWARD -j DOCKER-BRIDGE
-A DOCKER-FORWARD -i docker0 -j ACCEPT
-A DOCKER-ISOLATION-STAGE-1 -i docker0 ! -o docker0 -j DOCKER-ISOLATION-STAGE-2
-A DOCKER-ISOLATION-STAGE-2 -o docker0 -j DROP
COMMIT
`

func TestHostDocker(t *testing.T) {
	hosttest.Require(t)
	w := newWorld(t, networktest.New(t))
	for _, restore := range []string{"iptables-restore", "ip6tables-restore"} {
		w.host.Run(t, "sh", "-c", restore+" <<'END'\n"+docker+"END")
	}
	w.check(t, "[]")
	w.open(t)
	must.StrContains(t, w.host.Run(t, "iptables", "-S", "DOCKER-USER"), "-i nv-+ -m comment --comment nomad-nspawn -j ACCEPT")
	must.StrNotContains(t, w.host.Run(t, "iptables", "-S", "FORWARD"), "nv-")
	w.close(t)
}

// TestHostUfw runs ufw itself, and reloads it while the firewall is open.
func TestHostUfw(t *testing.T) {
	hosttest.Require(t)
	w := newWorld(t, networktest.New(t))
	w.host.Run(t, "ufw", "--force", "enable")
	t.Cleanup(func() { w.host.Run(t, "ufw", "disable") })
	w.check(t, "[]")
	w.open(t)
	w.host.Run(t, "ufw", "reload")
	must.Eq(t, wanted, w.passes(wanted))
	w.close(t)
}

// nmShared is the zone that NetworkManager ships.
const nmShared = `<zone target="ACCEPT"><short>NetworkManager Shared</short><rule priority="32767"><reject/></rule>
<protocol value="icmp"/><protocol value="ipv6-icmp"/><service name="dhcp"/><service name="dns"/><service name="ssh"/></zone>`

// startFirewalld starts firewalld itself, on the host's own network. The other machine is
// in a zone that forwards nothing, as an uplink may be.
func startFirewalld(t *testing.T, prepare string) *world {
	t.Helper()
	hosttest.Require(t)
	w := newWorld(t, networktest.Host(t))
	w.host.Run(t, "sh", "-c", prepare)
	w.host.Run(t, "systemctl", "start", "firewalld")
	t.Cleanup(func() {
		w.host.Run(t, "sh", "-c", "systemctl stop firewalld; rm -rf /etc/firewalld/zones/* /etc/firewalld/policies/*")
	})
	w.host.Run(t, "firewall-cmd", "--permanent", "--zone=dmz", "--add-interface=up0")
	w.host.Run(t, "firewall-cmd", "--reload")
	return w
}

// inFirewalld lists the connections that firewalld alone lets pass.
const inFirewalld = "[forwarded]"

func TestHostFirewalld(t *testing.T) {
	w := startFirewalld(t, "echo '"+nmShared+"' >/etc/firewalld/zones/nm-shared.xml")
	must.Eq(t, inFirewalld, w.passes(inFirewalld))
	must.SliceEmpty(t, w.open(t))
	must.Eq(t, wanted, w.passes(wanted))
	begin := time.Now()
	must.SliceEmpty(t, w.open(t))
	t.Log("nothing to do in", time.Since(begin))
	w.host.Serve(t, ":9000", "service")
	must.Eq(t, "", w.web.Ask("tcp", "10.98.1.1:9000")) // it remains closed
	w.close(t)
	must.Eq(t, inFirewalld, w.passes(inFirewalld))

	// A reload forgets the links, and the watch notices that.
	must.SliceEmpty(t, w.open(t))
	w.watched(t, func() { w.host.Run(t, "firewall-cmd", "--reload") })
	must.Eq(t, wanted, w.passes(wanted))
	w.close(t)
}

// TestHostFirewalldFinding runs the commands in the finding.
func TestHostFirewalldFinding(t *testing.T) {
	w := startFirewalld(t, "true")
	findings := w.open(t)
	must.Len(t, 1, findings)
	t.Log(findings[0])
	must.Eq(t, inFirewalld, w.passes(inFirewalld))
	w.host.Run(t, "sh", "-ec", findings[0].Remedy)
	must.SliceEmpty(t, w.open(t))
	must.Eq(t, wanted, w.passes(wanted))
	w.close(t)
	must.Eq(t, wanted, w.passes(wanted)) // The operator's own zone remains.
}

// TestHostWatch reloads a firewall in the way of an operator.
func TestHostWatch(t *testing.T) {
	hosttest.Require(t)
	w := newWorld(t, networktest.New(t))
	load := func() {
		w.host.Run(t, "nft", "table inet filter; flush table inet filter; table inet filter { chain forward { type filter hook forward priority 0; policy drop; }; }")
	}
	load()
	w.open(t)
	must.Eq(t, wanted, w.passes(wanted))
	w.watched(t, load)
	must.Eq(t, wanted, w.passes(wanted))
}

// watched calls change and waits until Open has restored what it removed.
func (w *world) watched(t *testing.T, change func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	changes, ended := make(chan struct{}, 1000), make(chan error, 1)
	go w.host.Twin(t).Do(func() {
		ended <- Watch(ctx, func() { changes <- struct{}{} })
	})
	<-changes // the watch has begun
	change()
	for start := time.Now(); w.passes("") != wanted; {
		must.Less(t, networktest.BusyPatience, time.Since(start))
		select {
		case <-changes:
			w.open(t)
		case <-time.After(networktest.Patience): // on a busy host, what passes may have come too late
		}
	}
	cancel()
	must.ErrorIs(t, <-ended, context.Canceled)
}
