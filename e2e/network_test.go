//go:build e2e

package e2e

import (
	"strings"

	"github.com/hashicorp/nomad/api"
	"github.com/shoenig/test/must"

	"nomad-driver-nspawn/e2e/agent"
)

var networkTests = []test{
	{"network modes of the group", testNetworkModes},
	{"network of a command with a veth pair", testVeth},
	{"forwarded port", testForwardedPort},
	{"names", testNames},
}

// Mode none is not among them: with Nomad 1.11.3 no driver can have it, "network
// already configured but not found in state" (network_hook.go, Prerun: the
// configurator of this mode has no status to tell).
func testNetworkModes(l *lab) {
	const show = "ls /sys/class/net; ip -4 -oneline address show scope global"
	for mode, want := range map[string]func(l *lab, stdout string){
		"bridge": func(l *lab, stdout string) {
			must.StrContains(l, stdout, "eth0")
			must.StrContains(l, stdout, "172.26.")
			must.StrNotContains(l, stdout, "uplink")
		},
		"host": func(l *lab, stdout string) { must.StrContains(l, stdout, l.agent.Host.Addr().String()) },
	} {
		l.sub(mode, func(l *lab) {
			out := l.finishIn(job{group: "network {\nmode = " + quote(mode) + "\n}", tasks: []task{{script: show}}})
			want(l, out.Stdout)
		})
	}
	l.sub("low port in bridge", func(l *lab) {
		out := l.finishIn(job{group: "network {\nmode = \"bridge\"\n}", tasks: []task{{script: "httpd -p 80 && echo listens"}}})
		must.Eq(l, "listens\n", out.Stdout, must.Sprint(out))
	})
}

// webServer serves its allocation's ID. It listens when it goes to the background.
const webServer = "mkdir /www; echo $NOMAD_ALLOC_ID >/www/index.html; httpd -p 80 -h /www\n"

// A port of the group, and of a task that it is forwarded to.
const (
	httpPort    = "network {\nport \"http\" {\nto = 80\n}\n}"
	forwardHTTP = "network_veth = true\nports = [\"http\"]"
)

func testVeth(l *lab) {
	al := l.ready(task{config: "network_veth = true", script: webServer + loop})
	fields := strings.Fields(l.exec(al, "ip", "-4", "-oneline", "address", "show", "host0"))
	must.Greater(l, 3, len(fields))
	address, _, _ := strings.Cut(fields[3], "/")
	must.Eq(l, al.ID+"\n", l.onHost("curl", "--silent", "--show-error", "--max-time", "10", "http://"+address+"/"))
	must.StrContains(l, l.exec(al, "ip", "route"), "default via")
}

func testForwardedPort(l *lab) {
	al := l.start(job{
		kind: service, group: httpPort,
		tasks: []task{{config: forwardHTTP, script: webServer + loop}},
	})
	must.NoError(l, al.Running(l.ctx))
	l.waitLog(al, agent.Stdout, "ready\n")
	must.Eq(l, al.ID+"\n", l.get(l.port(al)))
}

// port is the first one of the allocation's group, on the host.
func (l *lab) port(al *agent.Alloc) int {
	l.Helper()
	now, err := al.Await(l.ctx, "known", func(*api.Allocation) bool { return true })
	must.NoError(l, err)
	return now.AllocatedResources.Shared.Ports[0].Value
}

func testNames(l *lab) {
	l.sub("hostname", func(l *lab) {
		must.Eq(l, "my-host\n", l.finish(task{config: `hostname = "my-host"`, script: "hostname"}).Stdout)
	})
	l.sub("hosts", func(l *lab) {
		must.StrContains(l, l.finish(task{script: "cat /etc/hosts"}).Stdout, "127.0.0.1 localhost")
	})
	l.sub("dns", func(l *lab) {
		out := l.finishIn(job{
			group: "network {\nmode = \"bridge\"\ndns {\nservers = [\"192.0.2.53\"]\nsearches = [\"example.net\"]\n}\n}",
			tasks: []task{{script: "cat /etc/resolv.conf"}},
		})
		must.StrContains(l, out.Stdout, "nameserver 192.0.2.53\n")
		must.StrContains(l, out.Stdout, "search example.net\n")
	})
	l.sub("resolv.conf", func(l *lab) {
		out := l.finish(task{script: "cat /etc/resolv.conf"})
		must.Eq(l, l.onHost("cat", "/etc/resolv.conf"), out.Stdout)
	})
}
