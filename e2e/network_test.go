//go:build e2e

package e2e

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/hashicorp/nomad/api"
	"github.com/shoenig/test/must"

	"nomad-driver-nspawn/e2e/agent"
)

var networkTests = []test{
	{"network modes of the group", testNetworkModes},
	{"network is there first", testNetworkFirst},
	{"forwarded port", testForwardedPort},
	{"forwarded UDP", testForwardedUDP},
	{"forwarded port of a booted guest", testForwardedGuest},
	{"port of a host network", testHostNetworkPort},
	{"zone", testZone},
	{"bridge, macvlan, ipvlan and interface", testOthersNetworks},
	{"names", testNames},
}

// Mode none is missing: in Nomad 1.11.3 it fails with any driver, "network already
// configured but not found in state", because the configurator of this mode has no status
// (network_hook.go, Prerun).
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

// webServer serves its allocation's ID. It is listening when it goes to the background.
const webServer = "mkdir /www; echo $NOMAD_ALLOC_ID >/www/index.html; httpd -p 80 -h /www\n"

// A port of the group, and the config of a task to which it is forwarded.
const (
	httpPort    = "network {\nport \"http\" {\nto = 80\n}\n}"
	forwardHTTP = "network_veth = true\nports = [\"http\"]"
)

// testNetworkFirst runs tasks that first of all open a connection.
func testNetworkFirst(l *lab) {
	script := "wget -q -O- http://" + l.agent.Host.Addr().String() + ":4646/v1/agent/health >/dev/null && echo answered"
	for name, config := range map[string]string{
		"veth": "network_veth = true", "process one": "network_veth = true\nprocess_two = false", "zone": "network_zone = \"first\"",
	} {
		l.parallel(name, func(l *lab) {
			for range 5 {
				out := l.finish(task{config: config, script: script})
				must.Eq(l, "answered\n", out.Stdout, must.Sprint(out))
			}
		})
	}
}

// testForwardedPort sends requests to every address of the host, and from a neighboring
// container.
func testForwardedPort(l *lab) {
	for name, config := range map[string]string{
		"ports": forwardHTTP, "port_map": "network_veth = true\nport_map {\nhttp = 80\n}",
		"port_map, map": "network_veth = true\nport_map = { http = 80 }", "zone": "network_zone = \"web\"\nports = [\"http\"]",
	} {
		l.parallel(name, func(l *lab) {
			al := l.start(job{
				kind: service, group: httpPort,
				tasks: []task{{config: config, script: webServer + loop, more: l.driverService()}},
			})
			must.NoError(l, al.Running(l.ctx))
			l.waitLog(al, agent.Stdout, "ready\n")
			l.answersEverywhere(al, al.ID+"\n")
			l.answersBeside(al, al.ID+"\n")
			if name != "zone" { // a zone has no IPv6
				l.answersEverywhere(al, al.ID+"\n", "[::1]")
			}
			// The service has the container's own address.
			services, _, err := l.agent.API.Services().Get(l.serviceName(), nil)
			must.NoError(l, err)
			must.SliceLen(l, 1, services)
			url := fmt.Sprintf("http://%s:%d/", services[0].Address, services[0].Port)
			must.Eq(l, 80, services[0].Port)
			must.Eq(l, al.ID+"\n", l.onHost("curl", "--silent", "--show-error", "--max-time", "10", url))
		})
	}
}

func (l *lab) serviceName() string { return notName.ReplaceAllString(strings.ToLower(l.Name()), "-") }

func (l *lab) driverService() string {
	return fmt.Sprintf("service {\nname = %q\nprovider = \"nomad\"\nport = \"http\"\naddress_mode = \"driver\"\n}", l.serviceName())
}

func (l *lab) answersEverywhere(al *agent.Alloc, want string, addresses ...string) {
	l.Helper()
	port, host := l.port(al), l.agent.Host.Addr().String()
	for _, address := range append(addresses, "127.0.0.1", "localhost", host) {
		url := fmt.Sprintf("http://%s:%d/", address, port)
		must.Eq(l, want, l.onHost("curl", "--silent", "--show-error", "--max-time", "10", url), must.Sprint(address))
	}
}

// answersBeside sends a request from another container.
func (l *lab) answersBeside(al *agent.Alloc, want string) {
	l.Helper()
	url := fmt.Sprintf("http://%s:%d/", l.agent.Host.Addr(), l.port(al))
	out := l.finish(task{config: "network_veth = true", script: "wget -q -O- " + url})
	must.Eq(l, want, out.Stdout, must.Sprint(out))
}

// testForwardedDNS asks a DNS server in a container, by UDP and TCP: from hosts, by these
// addresses, and from another container.
func testForwardedDNS(l *lab, place string, callers map[*agent.Agent][]string) {
	const server = "image = \"debian\"\ncommand = \"dnsmasq\"\nports = [\"dns\"]\nargs = [\"--keep-in-foreground\", " +
		"\"--conf-file=/dev/null\", \"--user=root\", \"--no-resolv\", \"--address=/probe.test/192.0.2.53\"]\n"
	const query = `\0\1\1\0\0\1\0\0\0\0\0\0\5probe\4test\0\0\1\0\1` // as DNS has it
	for network, config := range map[string]string{"veth": "network_veth = true", "zone": "network_zone = \"dns\""} {
		l.sub(network, func(l *lab) {
			al := l.start(job{
				group: "network {\nport \"dns\" {\nto = 53\n}\n}" + place,
				tasks: []task{{config: server + config}},
			})
			must.NoError(l, al.Running(l.ctx))
			for from, addresses := range callers {
				for _, address := range addresses {
					for _, transport := range []string{"+notcp", "+tcp"} {
						if network == "zone" && address == "::1" {
							continue // a zone has no IPv6
						}
						out, err := from.Command(l.ctx, "dig", "+short", "+timeout=5", "+retry=3", transport,
							"@"+address, "-p", strconv.Itoa(l.port(al)), "probe.test")
						must.NoError(l, err, must.Sprint(address, transport, out))
						must.Eq(l, "192.0.2.53\n", out, must.Sprint(address, transport))
					}
				}
			}
			address := callers[l.agent][0]
			beside := l.start(job{group: place, tasks: []task{{config: fmt.Sprintf(
				"image = \"debian\"\ncommand = \"bash\"\nargs = [\"-c\", %s]\n%s", quote(fmt.Sprintf(
					"exec 3<>/dev/udp/%s/%d; printf '%s' >&3; timeout 5 dd bs=512 count=1 <&3 | tail -c 4 | od -An -tu1 | tr -s ' '",
					address, l.port(al), query)), config)}}})
			l.ended(beside)
			l.waitLog(beside, agent.Stdout, " 192 0 2 53\n")
		})
	}
}

func testForwardedUDP(l *lab) {
	testForwardedDNS(l, "", map[*agent.Agent][]string{l.agent: {l.agent.Host.Addr().String(), "127.0.0.1", "localhost", "::1"}})
}

func testForwardedGuest(l *lab) {
	al := l.start(job{
		kind: service, group: strings.Replace(httpPort, "80", "81", 1), // the image has a server on 80
		tasks: []task{{config: "image = \"debian\"\n" + forwardHTTP}},
	})
	must.NoError(l, al.Running(l.ctx))
	l.awaitReady(al, 1)
	l.exec(al, "sh", "-ec", `cd /run/systemd/system
printf '[Socket]\nListenStream=81\nAccept=yes\n' >hello.socket
printf '[Service]\nExecStart=echo guest\nStandardOutput=socket\n' >hello@.service
systemctl daemon-reload; systemctl start hello.socket || { journalctl -b -n 60 --no-pager | grep hello; exit 1; }`)
	ask := fmt.Sprintf("for n in $(seq 100); do (exec 3<>/dev/tcp/127.0.0.1/%d && cat <&3) && exit; sleep 0.1; done", l.port(al))
	must.Eq(l, "guest\n", l.onHost("bash", "-c", ask))
	l.exec(al, "systemctl", "reboot")
	l.awaitReady(al, 2)
	must.StrContains(l, l.onHost("nft", "list", "table", "inet", "nomad-nspawn"), machineOf(al))
}

// testHostNetworkPort forwards a port of the host's loopback only.
func testHostNetworkPort(l *lab) {
	al := l.start(job{
		kind: service, group: "network {\nport \"http\" {\nto = 80\nhost_network = \"inside\"\n}\n}",
		tasks: []task{{config: forwardHTTP, script: webServer + loop}},
	})
	must.NoError(l, al.Running(l.ctx))
	l.waitLog(al, agent.Stdout, "ready\n")
	must.Eq(l, al.ID+"\n", l.onHost("curl", "--silent", "--max-time", "10", fmt.Sprintf("http://127.0.0.1:%d/", l.port(al))))
	out, err := l.agent.Command(l.ctx, "curl", "--silent", "--max-time", "3", fmt.Sprintf("http://%s:%d/", l.agent.Host.Addr(), l.port(al)))
	must.Error(l, err, must.Sprint(out))
}

// testZone sends a request from one container of a zone to another.
func testZone(l *lab) {
	zone := "network_zone = \"shared\""
	al := l.ready(task{config: zone, script: webServer + loop})
	fields := strings.Fields(l.exec(al, "ip", "-4", "-oneline", "address", "show", "host0"))
	must.Greater(l, 3, len(fields))
	address, _, _ := strings.Cut(fields[3], "/")
	out := l.finish(task{config: zone, script: "wget -q -O- http://" + address + "/"})
	must.Eq(l, al.ID+"\n", out.Stdout, must.Sprint(out))
	l.sub("names", testNamesInZone)
	l.sub("booted", testGuestInZone)
	l.sub("refused", func(l *lab) {
		al := l.start(job{tasks: []task{{config: "network_zone = \"a/b\"", script: "true"}}})
		must.StrContains(l, l.refusal(al), `network_zone: "a/b" is not a name of at most 12`)
	})
}

// testNamesInZone has containers of a zone find each other by name, whichever came first.
// One that takes the name of another is not found by it.
func testNamesInZone(l *lab) {
	member := func(name string) *agent.Alloc {
		return l.running(task{config: fmt.Sprintf("image = \"debian\"\ncommand = \"sleep\"\nargs = [\"infinity\"]\n"+
			"network_zone = \"names\"\nhostname = %q\n", name)})
	}
	address := func(al *agent.Alloc) string { return strings.TrimSpace(l.exec(al, "hostname", "-I")) }
	find := func(from *agent.Alloc, name string) string {
		found, _, _ := strings.Cut(l.exec(from, "getent", "ahostsv4", name), " ")
		return found
	}
	first, second := member("first"), member("second.example.net")
	thief := member("first")
	must.Eq(l, address(first), find(second, "first"))
	must.Eq(l, address(second), find(first, "second"))
	must.Eq(l, address(second), find(thief, "second.example.net"))
	must.Eq(l, address(first), find(first, "first"))

	_, err := second.Stop(l.ctx)
	must.NoError(l, err)
	must.StrNotContains(l, l.exec(first, "cat", "/etc/hosts"), "second")
	_, err = first.Stop(l.ctx)
	must.NoError(l, err)
	must.Eq(l, address(thief), find(member("third"), "first"))
}

// testGuestInZone has a port of a booted guest, and a neighbor of it, call its web server,
// also after a reboot, during which the zone has no port.
func testGuestInZone(l *lab) {
	const zone = "network_zone = \"guests\"\n"
	al := l.start(job{
		kind: service, group: httpPort,
		tasks: []task{{config: "image = \"debian\"\nports = [\"http\"]\n" + zone}},
	})
	must.NoError(l, al.Running(l.ctx))
	for boots := 1; boots <= 2; boots++ {
		l.awaitReady(al, boots)
		page := l.onHost("sh", "-c", fmt.Sprintf("curl --silent --show-error --retry 20 --retry-all-errors --retry-delay 1 http://127.0.0.1:%d/", l.port(al)))
		must.StrContains(l, page, "nginx")
		address := l.exec(al, "sh", "-c", "ip -4 -oneline address show host0 scope global | sed 's:.* inet ::; s:/.*::'")
		ask := fmt.Sprintf("exec 3<>/dev/tcp/%s/80; printf 'GET / HTTP/1.0\\r\\n\\r\\n' >&3; grep -q 'Welcome to nginx' <&3 && echo answered", strings.TrimSpace(address))
		neighbor := l.start(job{tasks: []task{{config: fmt.Sprintf("image = \"debian\"\ncommand = \"bash\"\nargs = [\"-c\", %s]\n%s", quote(ask), zone)}}})
		l.ended(neighbor)
		l.waitLog(neighbor, agent.Stdout, "answered\n")
		if boots == 1 {
			l.exec(al, "systemctl", "reboot")
		}
	}
}

// testOthersNetworks runs a DHCP server on a bridge with the port e2e-port.
func testOthersNetworks(l *lab) {
	l.onHost("sh", "-ec", `ip link add br-e2e type bridge
ip addr add 198.51.101.1/24 dev br-e2e
ip link add e2e-port type veth peer name e2e-other
ip link set e2e-port up
ip link set e2e-other master br-e2e up
ip link set br-e2e up
systemd-run --quiet --unit=e2e-dhcp dnsmasq --keep-in-foreground --conf-file=/dev/null --port=0 --interface=br-e2e \
	--bind-interfaces --dhcp-range=198.51.101.10,198.51.101.99,2m --dhcp-option=option:dns-server,192.0.2.99`)
	l.atEnd("sh", "-ec", "systemctl stop e2e-dhcp; ip link del br-e2e; ip link del e2e-port || true")
	l.sub("booted, bridge", func(l *lab) { testGuestElsewhere(l, "network_bridge = \"br-e2e\"") })
	l.sub("booted, macvlan", func(l *lab) {
		const config = "network_macvlan = \"e2e-port:host0\""
		if l.agent.Host.Suite() == "bookworm" { // systemd 252
			al := l.start(job{tasks: []task{{config: "image = \"debian\"\n" + config}}})
			must.StrContains(l, l.refusal(al), "takes no name for the interface of a booted container")
			return
		}
		al := l.running(task{config: "image = \"debian\"\n" + config}) // whose networkd leaves such an interface alone
		must.StrContains(l, l.exec(al, "ip", "-details", "link", "show", "host0"), "macvlan mode bridge")
	})
	for _, test := range []struct{ kind, config, link string }{
		{"bridge", "network_bridge = \"br-e2e\"", "host0"},
		{"macvlan", "network_macvlan = \"e2e-port\"", "mv-e2e-port"},
		{"ipvlan", "network_ipvlan = \"e2e-port:lan\"", "lan"},
		{"interface", "network_interface = \"e2e-port:lan\"", "lan"}, // a virtual one ends with the container
	} {
		l.sub(test.kind, func(l *lab) {
			if test.kind == "ipvlan" && l.lacksIpvlan() {
				l.Skip("SKIPPED: the kernel of this machine has no ipvlan")
			}
			out := l.finish(task{config: test.config, script: "ip -4 -oneline addr show " + test.link + "; ping -c 1 -w 5 198.51.101.1; cat /etc/resolv.conf"})
			must.StrContains(l, out.Stdout, " 198.51.101.", must.Sprint(out))
			must.StrContains(l, out.Stdout, "1 packets received")
			must.StrContains(l, out.Stdout, "nameserver 192.0.2.99")
		})
	}
}

// testGuestElsewhere boots a guest that asks another server for its address, and again
// after a reboot.
func testGuestElsewhere(l *lab, config string) {
	al := l.start(job{tasks: []task{{config: "image = \"debian\"\n" + config}}})
	for boots := 1; boots <= 2; boots++ {
		l.awaitReady(al, boots)
		l.exec(al, "timeout", "60", "sh", "-c", "until ip -4 address show host0 | grep 198.51.101.; do sleep 0.1; done")
		if boots == 1 {
			l.exec(al, "systemctl", "reboot")
		}
	}
}

func (l *lab) lacksIpvlan() bool {
	const try = "ip link add try link e2e-port type ipvlan && ip link del try || echo lacks"
	return l.onHost("sh", "-c", try) == "lacks\n"
}

// port returns the first port of the allocation's group, on the host.
func (l *lab) port(al *agent.Alloc) int {
	l.Helper()
	now, err := al.Await(l.ctx, "known", func(*api.Allocation) bool { return true })
	must.NoError(l, err)
	return now.AllocatedResources.Shared.Ports[0].Value
}

func testNames(l *lab) {
	l.sub("own name", func(l *lab) {
		out := l.finish(task{
			config: "network_veth = true\nhostname = \"web.example\"\nextra_hosts = [\"db:192.0.2.7\", \"gate:host-gateway\"]",
			script: "ip -4 -o addr show host0; hostname -i; cat /etc/hosts; ping -c 1 -w 5 gate",
		})
		fields := strings.Fields(out.Stdout)
		must.Greater(l, 3, len(fields), must.Sprint(out))
		address, _, _ := strings.Cut(fields[3], "/")
		must.StrContains(l, out.Stdout, "\n"+address+" web.example web\n")
		must.StrContains(l, out.Stdout, "\n192.0.2.7 db\n")
		must.StrContains(l, out.Stdout, "1 packets received")
	})
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
