//go:build e2e

package e2e

import (
	"fmt"
	"strings"

	"github.com/shoenig/test/must"

	"nomad-driver-nspawn/e2e/agent"
	"nomad-driver-nspawn/e2e/escape"
)

// The attempts in this file make Nomad itself, which is root, do harm: it follows paths in
// the directories that it shares with tasks.

// hostFile creates a file on the host that nobody may read or change. At the end of the
// test it checks that the file is unchanged.
func (l *lab) hostFile(name string) (path string) {
	l.Helper()
	path = "/var/tmp/host-file-" + name
	l.onHost("sh", "-c", "umask 077; echo 'of the host' >"+path)
	before := l.onHost("stat", "--format=%a %u %g %i", path)
	l.atEnd("rm", path)
	l.Cleanup(func() {
		must.Eq(l, before, l.onHostAfter("stat", "--format=%a %u %g %i", path))
		must.Eq(l, "of the host\n", l.onHostAfter("cat", path))
	})
	return path
}

// identity returns a block for a token that Nomad writes to a file.
func identity(name, more string) string {
	return fmt.Sprintf("identity {\nname = %q\naud = [\"somebody\"]\nfile = true\n%s\n}\n", name, more)
}

// restarted is a block that starts a task once more after it has failed.
const restarted = "restart {\nattempts = 1\nmode = \"fail\"\ndelay = \"0s\"\n}\n"

// Nomad writes a token when it starts a task again, before the driver is called.
func testEscapeByTokenAtStart(l *lab) {
	target := l.hostFile("token-at-start")
	al := l.start(job{tasks: []task{{
		script: `cd /secrets
if [ -L nomad_x.jwt ]; then readlink nomad_x.jwt; test -s nomad_y.jwt && echo written; exit 0; fi
rm nomad_x.jwt nomad_y.jwt && ln -s ` + target + ` nomad_x.jwt && exit 1`,
		more: identity("x", "") + identity("y", "") + restarted,
	}}})
	now := l.ended(al)
	must.Zero(l, l.exitCode(now))
	must.Eq(l, target+"\nwritten\n", l.waitLog(al, agent.Stdout, "written\n"))
}

// Nomad writes a new token when the last one is about to expire.
func testEscapeByRenewal(l *lab) {
	target := l.hostFile("renewal")
	al := l.running(task{
		script: `cd /secrets
cp nomad_y.jwt /tmp/y && ln -sf ` + target + ` nomad_x.jwt
until ! cmp -s /tmp/y nomad_y.jwt; do sleep 0.1; done
readlink nomad_x.jwt
` + loop,
		more: identity("x", "ttl = \"20s\"") + identity("y", "ttl = \"20s\""),
	})
	must.Eq(l, target+"\nready\n", l.waitLog(al, agent.Stdout, "ready\n"))
	refused := func(line string) bool {
		return strings.Contains(line, al.ID) && strings.Contains(line, "nomad_x.jwt: too many levels of symbolic links")
	}
	for found := false; !found; { // the error of the other file may come later
		must.NoError(l, l.ctx.Err())
		text, err := l.agent.Log(l.ctx)
		must.NoError(l, err)
		for line := range strings.Lines(text) {
			found = found || refused(line)
		}
	}
}

// An agent that starts gives the directories of its allocations to everybody and opens its
// log files.
func testEscapeByAgentStart(l *lab) {
	for _, name := range []string{"data", "tmp", "logs"} {
		l.onHost("mkdir", "--mode=0700", "/var/tmp/of-the-host-"+name)
		l.atEnd("rm", "--recursive", "/var/tmp/of-the-host-"+name)
	}
	al := l.ready(task{script: `for name in data tmp logs; do
chown 0 /alloc/$name
` + escape.Detached("/alloc", `echo try >try; /bin/busybox mv try tried; /bin/busybox mv '$name' gone-'$name' && /bin/busybox ln -s /var/tmp/of-the-host-'$name' '$name'`) + `
done; ls /alloc; ` + loop})
	must.NoError(l, l.agent.Restart(l.ctx))
	l.awaitRecovery(al)
	for _, name := range []string{"data", "tmp", "logs"} {
		must.Eq(l, "700 0\n", l.onHost("stat", "--format=%a %u", "/var/tmp/of-the-host-"+name))
		must.Eq(l, "directory\n", l.onHost("stat", "--format=%F", allocDir(al)+"/alloc/"+name))
	}
	text := l.waitLog(al, agent.Stderr, "'logs': Value too large")
	must.Eq(l, 3, strings.Count(text, "Value too large"), must.Sprint(text))
	must.Eq(l, "data\nlogs\ntmp\ntried\nready\n", l.waitLog(al, agent.Stdout, "ready\n"))
	l.exec(al, "sh", "-c", "touch /alloc/new /alloc/data/new && mv /alloc/new /alloc/newer")
}

// Nomad checks where a path of an allocation leads and then shows the file. In between,
// the task replaces a directory by a link. About one in 50 attempts used to succeed.
func testEscapeByReading(l *lab) {
	const exchange = `my ($d, $l) = ("d", "l"); $| = 1; print "ready\n"; while (1) { syscall(316, -100, $d, -100, $l, 2); select(undef, undef, undef, 0.00002) }`
	al := l.running(task{config: attempt("debian", "cd /local && mkdir d && echo innocent >d/shadow && ln -s /etc l && exec perl -e '"+exchange+"'")})
	l.waitLog(al, agent.Stdout, "ready\n")
	// All requests use one connection: an agent accepts 100 per client.
	all := "http://127.0.0.1:4646/v1/client/fs/cat/" + al.ID + "?path=main/local/d/shadow&n=[1-500]"
	caught := 0
	for caught < 3 { // count the requests for which it was a link when Nomad opened it
		must.NoError(l, l.ctx.Err())
		text := l.onHost("curl", "--silent", all)
		must.StrNotContains(l, text, "root:")
		must.StrContains(l, text, "innocent\n")
		caught += strings.Count(text, "open "+allocDir(al)+"/main/local/d/shadow: too many levels")
	}
}

// Nomad writes a token to the path in the job, which its servers do not check.
func testEscapeByFilepath(l *lab) {
	const target = "/var/tmp/anywhere"
	l.finish(task{script: "true", more: identity("x", "filepath = \"../../../../../.."+target+"\"")})
	must.StrHasPrefix(l, "ey", l.onHost("cat", target), must.Sprint("Nomad has fixed it: update README"))
	l.onHost("rm", target)
}

// again changes a job so that it is tried once more, in a new allocation.
func again(hcl string) string {
	return strings.Replace(hcl, "reschedule {\n      attempts  = 0", "reschedule {\ninterval = \"1h\"\ndelay = \"5s\"\ndelay_function = \"constant\"\nattempts = 1", 1)
}

// dispatch registers a job, dispatches it with a text and returns its first allocation.
func (l *lab) dispatch(j job, text string) *agent.Alloc {
	l.Helper()
	j.group = "ephemeral_disk {\nsticky = true\n}\n" + j.group
	hcl := strings.Replace(l.hcl(j), "type = \"batch\"", "type = \"batch\"\nparameterized {\npayload = \"required\"\n}", 1)
	hcl = again(hcl)
	allocs, err := l.agent.Dispatch(l.ctx, hcl, text)
	must.NoError(l, err)
	l.removeAtEnd(allocs)
	return allocs[0]
}

// A task that runs first creates a link at the path to which Nomad writes the payload of
// another task's dispatch.
func testEscapeByDispatch(l *lab) {
	for _, file := range []string{"../../alloc/p", "../../alloc/tmp/p", "../../before/local/p"} {
		l.parallel(file, func(l *lab) {
			target := l.hostFile("dispatch-" + notName.ReplaceAllString(file, "-"))
			link := strings.NewReplacer("../../before", "", "../..", "").Replace(file)
			al := l.dispatch(job{tasks: []task{
				{script: "true", more: "dispatch_payload {\nfile = \"" + file + "\"\n}"},
				{name: "before", script: "ln -s " + target + " " + link, more: "lifecycle {\nhook = \"prestart\"\n}"},
			}}, "* * * * * root evil")
			now := l.ended(al)
			must.StrContains(l, agent.Events(now), "too many levels of symbolic links")
			must.Eq(l, target+"\n", l.onHost("readlink", strings.Replace(allocDir(al)+"/main/local/"+file, "main/local/../../", "", 1)))
		})
	}
}

// A task leaves such a link on a sticky disk, which Nomad moves to the next allocation.
func testEscapeByStickyDisk(l *lab) {
	target := l.hostFile("sticky")
	al := l.dispatch(job{tasks: []task{{
		script: "rm /local/p && ln -s " + target + " /local/p && exit 1",
		more:   "dispatch_payload {\nfile = \"p\"\n}",
	}}}, "* * * * * root evil")
	next, err := al.Next(l.ctx)
	must.NoError(l, err)
	l.removeAtEnd([]*agent.Alloc{next})
	now := l.ended(next)
	must.One(l, l.exitCode(now)) // p was a regular file again
}

// For any other job, a sticky disk moves to the next allocation together with its links.
func testStickyDisk(l *lab) {
	hcl := l.hcl(job{group: "ephemeral_disk {\nsticky = true\n}", tasks: []task{{
		script: "cat /local/l /alloc/data/l && exit; echo local >/local/f; echo data >/alloc/data/f; ln -s f /local/l; ln -s /alloc/data/f /alloc/data/l; exit 1",
	}}})
	al := l.startHCL(again(hcl))[0]
	next, err := al.Next(l.ctx)
	must.NoError(l, err)
	l.removeAtEnd([]*agent.Alloc{next})
	now := l.ended(next)
	must.Zero(l, l.exitCode(now))
	must.Eq(l, "local\ndata\n", l.waitLog(next, agent.Stdout, "data\n"))
}

// Tasks of dispatched jobs use links like other tasks, and nothing is left of them.
func testDispatched(l *lab) {
	al := l.dispatch(job{tasks: []task{{
		script: "cd /local && ln -s p q && cat q && ln -s /local /alloc/data/l && cat /alloc/data/l/q && ln -s nomad_x.jwt /secrets/y && test -s /secrets/y && ls /local /local/..",
		config: "bind = { \"local\" = \"/mine\" }",
		more:   identity("x", "") + "dispatch_payload {\nfile = \"p\"\n}",
	}}}, "hello\n")
	now := l.ended(al)
	must.Zero(l, l.exitCode(now), must.Sprint(agent.Events(now)))
	l.waitLog(al, agent.Stdout, "hello\nhello\n")
	must.NoError(l, al.Remove(l.ctx))
	l.finish(task{script: "true"})
	_, err := l.agent.Command(l.ctx, "stat", allocDir(al))
	must.ErrorContains(l, err, "No such file")
	must.Eq(l, "", l.onHost("sh", "-c", "grep "+al.ID+" /proc/self/mountinfo || true"))
}
