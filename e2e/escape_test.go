//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/nomad/api"
	"github.com/shoenig/test/must"

	"nomad-driver-nspawn/e2e/agent"
	"nomad-driver-nspawn/e2e/escape"
	"nomad-driver-nspawn/e2e/host"
)

// escapes are jobs that try to get out of their container. Each attempt has worked once.
// Each test shows that the attempt is real: the steps before the last one, which fails,
// succeed.
var escapes = []test{
	{"a guest exchanges what is bound, and reboots", testEscapeByReboot},
	{"links of the image make the logs writable", testEscapeByLogs},
	{"a mount changes where the logs are", testEscapeByMount},
	{"a frozen group holds the plugin", testEscapeByFreezing},
	{"links of the image lead systemd-nspawn out", testEscapeByImage},
	{"a forwarded port takes one of the host", testEscapeByPort},
	{"the host's network", testEscapeByNetwork},
	{"the name of a task is a path", testEscapeByName},
	{"parameters of the kernel", testEscapeBySysctl},
	{"one line from inside each", testEscapeFromInside},
	{"Nomad writes a token through a link at a start", testEscapeByTokenAtStart},
	{"Nomad renews a token through a link", testEscapeByRenewal},
	{"Nomad writes what a job is dispatched with through a link", testEscapeByDispatch},
	{"Nomad moves a link to the next allocation", testEscapeByStickyDisk},
	{"a dispatched job", testDispatched},
	{"a sticky disk", testStickyDisk},
	{"Nomad reads through a link", testEscapeByReading},
	{"Nomad writes a token where the job says", testEscapeByFilepath},
}

// escapesAlone are the attempts that disturb other tests.
var escapesAlone = []test{
	{"an agent starts", testEscapeByAgentStart},
}

// TestEscape makes the attempts on a host of each chosen suite.
func TestEscape(t *testing.T) {
	for _, suite := range host.Chosen() {
		t.Run(suite, func(t *testing.T) {
			t.Parallel()
			a := up(t, suite)
			t.Run("together", func(t *testing.T) {
				for _, attempt := range escapes {
					t.Run(attempt.name, func(t *testing.T) {
						t.Parallel()
						attempt.run(newLab(t, a))
					})
				}
			})
			for _, attempt := range escapesAlone {
				t.Run(attempt.name, func(t *testing.T) { attempt.run(newLab(t, a)) })
			}
		})
	}
}

// victim creates a directory on the host that everybody may write to. At the end of the
// test it checks that the directory is unchanged.
func (l *lab) victim(name string) string {
	l.Helper()
	dir := "/var/tmp/victim-" + name
	l.onHost("mkdir", "--mode=0777", dir)
	l.onHost("chmod", "0777", dir)
	l.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), testTimeout)
		defer cancel()
		found, err := l.agent.Command(ctx, "find", dir, "-mindepth", "1")
		must.NoError(l, err)
		must.Eq(l, "", found)
	})
	return dir
}

// imageWith makes a copy of the busybox image and runs a script in it.
func (l *lab) imageWith(name, script string) string {
	l.Helper()
	dir := "/var/lib/machines/" + name
	l.onHost("cp", "--archive", "/var/lib/machines/busybox", dir)
	l.atEnd("rm", "--recursive", dir)
	l.onHost("sh", "-c", "cd "+dir+" && "+script)
	return name
}

// attempt returns the config that runs a script in an image.
func attempt(image, script string) string {
	return fmt.Sprintf("image = %q\ncommand = \"/bin/sh\"\nargs = [\"-c\", %s]\n", image, quote(script))
}

func testEscapeByReboot(l *lab) {
	target := l.victim("reboot")
	al := l.start(job{kind: service, tasks: []task{{
		config: "image = \"debian\"\nbind = { \"local/a\" = \"/a\" }\n",
		more:   "template {\ndata = \"mine\"\ndestination = \"local/a/mine\"\n}\nkill_timeout = \"" + patience + "\"",
	}}})
	must.NoError(l, al.Running(l.ctx))
	l.awaitReady(al, 1)
	l.exec(al, "sh", "-c", "cd /local && mv a old && ln -s "+target+" a")
	_, _ = al.Exec(l.ctx, "main", "", "systemctl", "reboot", "-ff") // may not live to tell
	l.awaitReady(al, 2)
	must.Eq(l, target+"\n", l.exec(al, "readlink", "/local/a"))
	must.Eq(l, "mine\n", l.exec(al, "ls", "/a"))
	l.exec(al, "touch", "/a/more")
	l.onHost("stat", allocDir(al)+"/main/local/old/more")
}

func testEscapeByLogs(l *lab) {
	image := l.imageWith("escape-logs", "mkdir p && ln -s p/q alloc && ln -s /L1 p/q")
	l.eachMode(func(l *lab, config string) {
		al := l.start(job{tasks: []task{{config: config + "\n" + attempt(image,
			"cd /L1 && touch data/real; for what in 'touch logs/x' 'mv logs old' 'ln -s /etc/x logs/main.stdout.1' 'umount logs' 'mount -o remount,bind,rw logs'; do $what && touch \"data/$what\"; done; exit 0")}}})
		now := l.ended(al)
		must.Zero(l, l.exitCode(now))
		must.Eq(l, "real\n", l.onHost("ls", allocDir(al)+"/alloc/data"))
	})
}

func testEscapeByMount(l *lab) {
	for option, c := range map[string]struct{ config, want string }{
		"tmpfs":        {`tmpfs = ["/alloc/aaa"]`, "tmpfs: /alloc/aaa lies in /alloc"},
		"inaccessible": {`inaccessible = ["/x/../alloc/aaa"]`, "lies in /alloc"},
		"bind":         {`bind = { "local" = "/alloc/aaa/b" }`, "it is a symbolic link"},
	} {
		l.sub(option, func(l *lab) {
			al := l.start(job{tasks: []task{
				{config: c.config + "\n" + attempt("busybox", "true")},
				{name: "before", config: attempt("busybox", "ln -s /bin /alloc/aaa"), more: "lifecycle {\nhook = \"prestart\"\n}"},
			}})
			must.StrContains(l, l.refusal(al), c.want)
			must.Eq(l, "/bin\n", l.onHost("readlink", allocDir(al)+"/alloc/aaa"))
		})
	}
}

func testEscapeByFreezing(l *lab) {
	l.eachMode(func(l *lab, config string) {
		const group = "/sys/fs/cgroup/exec.scope"
		al := l.running(task{config: config, script: "mkdir " + group + "; echo 1 >" + group + "/cgroup.freeze && grep 1 " + group + "/cgroup.freeze && " + loop})
		l.waitLog(al, agent.Stdout, "1\nready\n") // it is frozen
		ctx, cancel := context.WithTimeout(l.ctx, 5*time.Second)
		_, _ = al.Exec(ctx, "main", "", "/bin/true") // the result does not matter: others must not be affected
		cancel()
		began := time.Now()
		out := l.finish(task{script: "echo lives"})
		must.Eq(l, agent.Output{Stdout: "lives\n"}, out)
		must.Less(l, 30*time.Second, time.Since(began))
		_, err := al.Stop(l.ctx)
		must.NoError(l, err)
		l.gone(al)
	})
}

func testEscapeByImage(l *lab) {
	for _, place := range []string{"run", "dev", "var", "tmp", "etc/machine-id"} {
		l.sub(place, func(l *lab) {
			target := l.victim(notName.ReplaceAllString(place, "-"))
			image := l.imageWith("escape-"+notName.ReplaceAllString(place, "-"), "rm -rf "+place+" && ln -s "+target+" "+place)
			must.Eq(l, target+"\n", l.onHost("readlink", "/var/lib/machines/"+image+"/"+place))
			l.eachMode(func(l *lab, config string) {
				al := l.start(job{tasks: []task{{config: config + "\nlink_journal = \"try-guest\"\n" + attempt(image, "test ! -L /"+place)}}})
				now := l.ended(al)
				must.Zero(l, l.exitCode(now))
			})
		})
	}
}

func testEscapeByPort(l *lab) {
	l.onHost("systemd-run", "--quiet", "--unit=escape-udp", "--socket-property=ListenDatagram=127.0.0.1:18082", "true")
	l.atEnd("systemctl", "stop", "escape-udp.socket")
	for port, want := range map[int]string{
		4646:  "4646 is a port of Nomad itself",
		18082: "reserve port 18082 of the host: another program uses it for UDP",
	} {
		al := l.start(job{
			group: fmt.Sprintf("network {\nport \"x\" {\nstatic = %d\n}\n}", port),
			tasks: []task{{config: "ports = [\"x\"]\n" + attempt("busybox", "true")}},
		})
		must.StrContains(l, l.refusal(al), want)
	}
}

func testEscapeByNetwork(l *lab) {
	l.onHost("systemd-run", "--quiet", "--unit=escape-abstract", "--socket-property=ListenStream=@escape-abstract", "true")
	l.atEnd("systemctl", "stop", "escape-abstract.socket")
	const reach = "nc -w 2 127.0.0.1 4646 </dev/null && echo reached; grep -q @escape-abstract /proc/net/unix && echo sees; true"
	out := l.finish(task{config: "network_veth = false", script: reach})
	must.Eq(l, "reached\nsees\n", out.Stdout) // where it is allowed
	out = l.finish(task{config: "network_veth = true", script: reach})
	must.Eq(l, "", out.Stdout)

	stranger := l.inNamespace("stranger")
	hcl := strings.Replace(stranger.hcl(job{tasks: []task{{script: reach, config: "network_veth = false"}}}), "{", "{\nnamespace = \"stranger\"", 1)
	must.StrContains(l, l.refusal(stranger.startHCL(hcl)[0]), "allow_host_network")
}

// testEscapeFromInside makes many attempts, one after the other, in one container of each
// kind.
func testEscapeFromInside(l *lab) {
	for kind, config := range map[string]string{
		"booted":  "image = \"debian\"",
		"command": "capability = [\"all\"]\n" + attempt("debian", loop),
	} {
		l.parallel(kind, func(l *lab) {
			al := l.running(task{config: config, more: "kill_timeout = \"" + patience + "\""})
			l.exec(al, "sh", "-ec", "for tool in "+strings.Join(escape.Tools, " ")+"; do command -v $tool; done")
			attempts := append([]escape.Script{{What: "nothing, which succeeds", Text: "true"}}, escape.Inside...)
			var all strings.Builder
			for _, attempt := range attempts {
				fmt.Fprintf(&all, "timeout 5 sh -c %s >/dev/null 2>&1 </dev/null && echo %s\n", shellQuote(attempt.Text), shellQuote(attempt.What))
			}
			all.WriteString("echo end\n")
			must.Eq(l, "nothing, which succeeds\nend\n", l.exec(al, "sh", "-c", all.String()))
		})
	}
}

func shellQuote(text string) string { return "'" + strings.ReplaceAll(text, "'", `'\''`) + "'" }

// inNamespace returns the lab in a namespace of Nomad for which the operator allows
// nothing.
func (l *lab) inNamespace(name string) *lab {
	l.Helper()
	client, err := api.NewClient(&api.Config{Address: l.agent.API.Address(), Namespace: name})
	must.NoError(l, err)
	_, err = client.Namespaces().Register(&api.Namespace{Name: name}, nil)
	must.NoError(l, err)
	return &lab{T: l.T, ctx: l.ctx, agent: &agent.Agent{Host: l.agent.Host, API: client, Node: l.agent.Node}}
}

// Nomad accepts "." and ".." as names of tasks. The directory of the task would then be
// the directory of the allocation, or of all allocations.
func testEscapeByName(l *lab) {
	for _, name := range []string{".", ".."} {
		hcl := l.hcl(job{tasks: []task{{name: name, config: "bind = { \"alloc/logs\" = \"/x\" }\n" + attempt("busybox", "true")}}})
		al := l.startHCL(hcl)[0]
		now := l.ended(al)
		must.StrContains(l, agent.Events(now), "is no name of a task")
	}
}
