//go:build e2e

package e2e

import (
	"fmt"

	"github.com/shoenig/test/must"

	"nomad-driver-nspawn/e2e/agent"
)

// caseTests are jobs that users of other drivers have asked for in public.
var caseTests = []test{
	{"case: owner of a tmpfs", testCaseTmpfs},
	{"case: ping", testCasePing},
	{"case: low port of a user", testCaseLowPort},
	{"case: users above 65535", testCaseHighUser},
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

// testCasePing asks as the ping of iputils does: busybox's wants a raw socket, which no
// user namespace has in a network that is not its own.
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
			now, err := al.Ended(l.ctx)
			must.NoError(l, err)
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
	now, err := al.Ended(l.ctx)
	must.NoError(l, err)
	must.StrContains(l, l.refusal(now), "user: a container has the IDs 0 to 65535")
}
