//go:build e2e

package e2e

import (
	"fmt"
	"regexp"
	"strings"

	"github.com/hashicorp/nomad/api"
	"github.com/shoenig/test/must"

	"nomad-driver-nspawn/e2e/agent"
)

// caseTests are jobs that users of other drivers have asked for in public.
var caseTests = []test{
	{"case: owner of a tmpfs", testCaseTmpfs},
	{"case: ping", testCasePing},
	{"case: low port of a user", testCaseLowPort},
	{"case: users above 65535", testCaseHighUser},
	{"case: files of users above 65535", testCaseHighOwner},
	{"case: names of ports and identities", testCaseNames},
	{"case: variables of a template", testCaseTemplate},
	{"case: mounts below a bind", testCaseSubmount},
	{"case: network of the first instruction", testCaseNetworkFirst},
	{"case: own name in a bridge", testCaseOwnName},
	{"case: busybox's init", testCaseBusyboxInit},
}

func testCaseTmpfs(l *lab) {
	for name, test := range map[string]struct{ config, want string }{
		"owner": {`tmpfs = ["/data:uid=1000,gid=1000,mode=0700,size=8M"]`, "1000:1000:700\nwritable\n"},
		"plain": {`tmpfs = ["/data:size=8M"]`, "0:0:1777\nwritable\n"},
	} {
		l.sub(name, func(l *lab) {
			out := l.finish(task{config: test.config, script: "stat -c %u:%g:%a /data; echo x >/data/file && echo writable", more: `user = "1000"`})
			must.Eq(l, test.want, out.Stdout, must.Sprint(out))
		})
	}
}

// testCasePing sends an echo request as the ping of iputils does. The ping of busybox
// needs a raw socket, which a user namespace cannot have in a network that is not its own.
func testCasePing(l *lab) {
	const ping = `socket(S, AF_INET, SOCK_DGRAM, 1) or die "socket: $!"; ` +
		`send(S, pack("C2n3", 8, 0, 0, 0, 1), 0, sockaddr_in(0, inet_aton("127.0.0.1"))) or die "send: $!"; ` +
		`alarm 5; recv(S, my $answer, 100, 0); print "answered\n"`
	config := fmt.Sprintf("image = \"debian\"\ncommand = \"perl\"\nargs = [\"-MSocket\", \"-e\", %s]", quote(ping))
	for name, j := range map[string]job{
		"bridge": {group: "network {\nmode = \"bridge\"\n}", tasks: []task{{config: config}}},
		"veth":   {tasks: []task{{config: config}}},
		"user":   {tasks: []task{{config: config, more: `user = "1000"`}}},
	} {
		l.parallel(name, func(l *lab) {
			al := l.start(j)
			now := l.ended(al)
			must.Zero(l, l.exitCode(now))
			l.waitLog(al, agent.Stdout, "answered\n")
		})
	}
}

func testCaseLowPort(l *lab) {
	out := l.finish(task{config: "network_veth = true", script: "httpd -p 80 && echo listens", more: `user = "1000"`})
	must.Eq(l, "listens\n", out.Stdout, must.Sprint(out))
}

func testCaseHighUser(l *lab) {
	al := l.start(job{tasks: []task{{script: "id", more: `user = "1000650000"`}}})
	must.StrContains(l, l.refusal(al), "user: a container has the IDs 0 to 65535")
}

// sharedVolume is the agent's host volume, and sharedDir a new directory in it.
const (
	sharedVolume = "volume \"shared\" {\ntype = \"host\"\nsource = \"shared\"\n}\n"
	sharedMount  = "volume_mount {\nvolume = \"shared\"\ndestination = \"/shared\"\n"
)

func (l *lab) sharedDir(name string) (onHost, inside string) {
	l.Helper()
	dir := "/srv/shared/" + name
	l.onHost("mkdir", dir)
	l.atEnd("rm", "--recursive", dir)
	return dir, "/shared/" + name
}

// A file whose owner the container has no ID for is nobody's there, and closed.
func testCaseHighOwner(l *lab) {
	dir, inside := l.sharedDir("high-owner")
	l.onHost("sh", "-c", "cd "+dir+" && echo secret >ldap && chmod 0600 ldap && chown 200000 ldap")
	out := l.finishIn(job{group: sharedVolume, tasks: []task{{
		script: "cd " + inside + "; stat -c %u ldap; cat ldap; chown 100000 .; echo done",
		more:   sharedMount + "}",
	}}})
	must.Eq(l, "65534\ndone\n", out.Stdout, must.Sprint(out))
	must.StrContains(l, out.Stderr, "ldap': Permission denied")
	must.StrContains(l, out.Stderr, "Invalid argument")
}

const readEnviron = `tr '\0' '\n' </proc/$$/environ`

func testCaseNames(l *lab) {
	for name, group := range map[string]string{
		"host":   "network {\nport \"my-http\" {}\n}",
		"bridge": "network {\nmode = \"bridge\"\nport \"my-http\" {}\n}",
	} {
		l.parallel(name, func(l *lab) {
			out := l.finishIn(job{group: group, tasks: []task{{
				script: readEnviron,
				more:   "identity {\nname = \"my-app\"\naud = [\"example\"]\nenv = true\n}",
			}}})
			must.RegexMatch(l, regexp.MustCompile(`(?m)^NOMAD_ALLOC_PORT_my-http=\d+$`), out.Stdout)
			must.RegexMatch(l, regexp.MustCompile(`(?m)^NOMAD_TOKEN_my-app=ey`), out.Stdout)
		})
	}
}

// testCaseTemplate has no dash, which Nomad itself refuses there.
func testCaseTemplate(l *lab) {
	out := l.finish(task{
		script: readEnviron,
		more:   "template {\ndestination = \"local/app.env\"\nenv = true\ndata = \"discovery.type=single-node\\n\"\n}",
	})
	must.SliceContains(l, strings.Split(out.Stdout, "\n"), "discovery.type=single-node")
}

func testCaseSubmount(l *lab) {
	dir, inside := l.sharedDir("submount")
	l.onHost("sh", "-c", "cd "+dir+" && mkdir sub && echo t >top && mount -t tmpfs none sub && echo b >sub/below && chown 1000 sub/below")
	l.atEnd("umount", dir+"/sub")
	script := "cd " + inside + "; cat top sub/below; stat -c %u sub/below; touch sub/new && echo writable"
	for _, test := range []struct{ name, mount, want string }{
		{"read-only", sharedMount + "read_only = true\n}", "t\nb\n1000\n"},
		{"writable", sharedMount + "}", "t\nb\n1000\nwritable\n"},
	} {
		l.sub(test.name, func(l *lab) {
			out := l.finishIn(job{group: sharedVolume, tasks: []task{{script: script, more: test.mount}}})
			must.Eq(l, test.want, out.Stdout, must.Sprint(out))
		})
	}
	must.Eq(l, "0\n", l.onHost("stat", "--format=%u", dir+"/sub/new"))
}

// testCaseNetworkFirst uses the network at once, many times over.
func testCaseNetworkFirst(l *lab) {
	const tasks = 10
	var list []task
	for n := range tasks {
		name := fmt.Sprintf("t%d", n)
		if n == 0 {
			name = "main"
		}
		list = append(list, task{name: name, config: `image = "busybox"
command = "wget"
args = ["-q", "-O", "/dev/null", "http://${attr.unique.network.ip-address}:4646/v1/status/leader"]`})
	}
	for range 3 {
		al := l.start(job{tasks: list})
		now, err := al.Ended(l.ctx)
		must.NoError(l, err)
		must.Eq(l, api.AllocClientStatusComplete, now.ClientStatus, must.Sprint(agent.Events(now)))
	}
}

func testCaseOwnName(l *lab) {
	al := l.start(job{
		group: "network {\nmode = \"bridge\"\nport \"http\" {\nto = 80\n}\n}",
		tasks: []task{{config: attempt("debian", "getent hosts $(hostname); hostname -i")}},
	})
	now, err := al.Ended(l.ctx)
	must.NoError(l, err)
	must.Zero(l, l.exitCode(now))
	address := now.NetworkStatus.Address
	text := l.waitLog(al, agent.Stdout, address+"\n")
	must.StrHasPrefix(l, address, text)
}

// testCaseBusyboxInit stops an init that has other signals than systemd's, by itself and by
// the job's own signal.
func testCaseBusyboxInit(l *lab) {
	image := l.imageWith("bbinit", `printf '%s\n' '::sysinit:/bin/echo all is up' '::respawn:/bin/sleep 1000' `+
		`'::shutdown:/bin/sh -c "echo bye >/dev/console"' >etc/inittab`)
	for name, more := range map[string]string{"default": "", "kill_signal": "kill_signal = \"SIGUSR2\"\n"} {
		l.sub(name, func(l *lab) {
			al := l.running(task{config: fmt.Sprintf("image = %q\nboot = true\nnetwork_veth = false\n", image), more: more + "kill_timeout = \"" + patience + "\""})
			l.waitLog(al, agent.Stdout, "all is up")
			now, err := al.Stop(l.ctx)
			must.NoError(l, err)
			must.Zero(l, l.exitCode(now))
			l.waitLog(al, agent.Stdout, "bye")
		})
	}
}
