//go:build e2e

package e2e

import (
	"strings"

	"github.com/hashicorp/nomad/api"
	"github.com/shoenig/test/must"

	"nomad-driver-nspawn/e2e/agent"
)

var fileTests = []test{
	{"directories of the task", testDirectories},
	{"tasks share the allocation's directory", testSharedDirectory},
	{"ephemeral root is new at each start", testEphemeral},
	{"ephemeral roots are private", testEphemeralPrivate},
	{"root in place", testInPlace},
	{"read-only root", testReadOnly},
}

func testDirectories(l *lab) {
	al := l.ready(task{
		script: "touch $NOMAD_ALLOC_DIR/data/made $NOMAD_TASK_DIR/made $NOMAD_SECRETS_DIR/made\n" + loop,
		more:   "template {\ndestination = \"local/rendered\"\ndata = \"of {{ env \\\"NOMAD_TASK_NAME\\\" }}\"\n}",
	})
	for _, path := range []string{"/alloc/data/made", "/main/local/made", "/main/secrets/made"} {
		must.Eq(l, "0:0\n", l.onHost("stat", "--format=%u:%g", allocDir(al)+path), must.Sprint(path))
	}
	must.Eq(l, "of main", l.exec(al, "cat", "/local/rendered"))
	must.Eq(l, "0\n", l.exec(al, "stat", "-c", "%u", "/local/made"))

	out, err := al.Exec(l.ctx, "main", "", "touch", "/alloc/logs/made")
	must.NoError(l, err)
	must.NonZero(l, out.Code)
	must.StrContains(l, out.Stderr, "Read-only file system")
}

func testSharedDirectory(l *lab) {
	al := l.start(job{tasks: []task{
		{name: "writer", script: "echo hello >/alloc/data/new; mv /alloc/data/new /alloc/data/letter"},
		{name: "main", script: "until [ -e /alloc/data/letter ]; do sleep 0.1; done; cat /alloc/data/letter"},
	}})
	now := l.ended(al)
	must.Eq(l, api.AllocClientStatusComplete, now.ClientStatus)
	l.waitLog(al, agent.Stdout, "hello\n")
}

func testEphemeral(l *lab) {
	al := l.ready(task{script: "cat /marker || echo none; echo old >/marker\n" + loop})
	must.NoError(l, al.Restart(l.ctx))
	text := l.waitLog(al, agent.Stdout, "ready\nnone\nready\n")
	must.Eq(l, "none\nready\nnone\nready\n", text)
}

func testEphemeralPrivate(l *lab) {
	allocs := l.startHCL(l.hcl(job{
		kind: service, group: "count = 2",
		tasks: []task{{script: "touch /mark-$NOMAD_ALLOC_ID\n" + loop}},
	}))
	must.SliceLen(l, 2, allocs)
	for _, al := range allocs {
		must.NoError(l, al.Running(l.ctx))
		l.waitLog(al, agent.Stdout, "ready\n")
	}
	for _, al := range allocs {
		must.Eq(l, "/mark-"+al.ID+"\n", l.exec(al, "sh", "-c", "ls -d /mark-*"))
	}
}

func testInPlace(l *lab) {
	const image = "/var/lib/machines/in-place"
	l.onHost("cp", "--archive", "/var/lib/machines/busybox", image)
	l.atEnd("rm", "--recursive", image)
	const inPlace = "ephemeral = false\nimage = \"in-place\"\ncommand = \"/bin/sh\"\nnetwork_veth = false\n"
	script := func(text string) string { return inPlace + "args = [\"-c\", " + quote(text) + "]\n" }

	first := l.ready(task{config: script("echo kept >/marker\n" + loop)})
	must.Eq(l, "0\n", l.onHost("stat", "--format=%u", image+"/marker"))

	second := l.start(job{tasks: []task{{config: script("true")}}})
	must.StrContains(l, l.refusal(second), "directory "+image+" is written to by machine "+machineOf(first))

	_, err := first.Stop(l.ctx)
	must.NoError(l, err)
	third := l.start(job{tasks: []task{{config: script("cat /marker; echo " + end)}}})
	l.ended(third)
	must.StrContains(l, l.waitLog(third, agent.Stdout, end), "kept\n")
}

func testReadOnly(l *lab) {
	out := l.finish(task{
		config: "read_only = true",
		script: "touch /new; touch $NOMAD_TASK_DIR/new && echo local is writable; touch /tmp/new && echo tmp is writable",
	})
	must.Eq(l, "local is writable\ntmp is writable\n", out.Stdout)
	must.StrContains(l, out.Stderr, "touch: /new: Read-only file system")
	must.One(l, strings.Count(out.Stderr, "Read-only"))
}
