//go:build e2e

package e2e

import (
	"context"

	"github.com/hashicorp/nomad/api"
	"github.com/shoenig/test/must"
)

// brokenHostTests take away something that the driver needs from the host.
var brokenHostTests = []test{
	{"host without systemd-nspawn", testWithoutNspawn},
	{"host without a bus", testWithoutBus},
}

func testWithoutNspawn(l *lab) {
	const tool, hidden = "/usr/bin/systemd-nspawn", "/usr/bin/hidden-nspawn"
	const advice = "install the package systemd-container"
	l.onHost("mv", tool, hidden)
	found := false
	l.Cleanup(func() {
		if !found {
			_ = l.agent.Host.Command(context.Background(), "mv", hidden, tool).Run()
		}
	})
	// The driver found it earlier and is still healthy.
	al := l.start(job{tasks: []task{{script: "true"}}})
	must.StrContains(l, l.refusal(al), advice)
	l.gone(al)

	must.NoError(l, l.agent.KillPlugin(l.ctx)) // the new plugin looks for it at once
	info, err := l.agent.AwaitDriver(l.ctx, false)
	must.NoError(l, err)
	must.False(l, info.Detected)
	must.StrContains(l, info.HealthDescription, advice)

	l.onHost("mv", hidden, tool)
	found = true
	must.NoError(l, l.agent.KillPlugin(l.ctx))
	_, err = l.agent.AwaitDriver(l.ctx, true)
	must.NoError(l, err)
	must.Eq(l, "back\n", l.finish(task{script: "echo back"}).Stdout)
}

func testWithoutBus(l *lab) {
	al := l.ready(task{script: "trap 'exit 9' TERM\n" + loop, more: `kill_timeout = "` + patience + `"`})
	l.onHost("systemctl", "stop", "dbus.socket", "dbus.service")
	failed := l.start(job{tasks: []task{{script: "true"}}})
	message := l.refusal(failed)
	l.onHost("systemctl", "start", "dbus.socket", "dbus.service")
	must.StrContains(l, message, "bus")

	_, err := l.agent.AwaitDriver(l.ctx, true)
	must.NoError(l, err)
	now, err := al.Stop(l.ctx)
	must.NoError(l, err)
	must.Eq(l, 9, l.exitCode(now))
	must.SliceLen(l, 1, events(now, api.TaskStarted))
	l.gone(al)
	l.gone(failed)
}
