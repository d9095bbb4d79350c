//go:build e2e

package e2e

import (
	"time"

	"github.com/hashicorp/nomad/api"
	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"

	"nomad-driver-nspawn/e2e/agent"
	"nomad-driver-nspawn/e2e/soak/hostproc"
)

// startFaults happen when a start has reached a certain step. Nomad does not know that the
// start has succeeded, and starts the task again.
func startFaults() (tests []test) {
	killPlugin := func(l *lab, plugin hostproc.Process) error { return plugin.Signal(unix.SIGKILL) }
	for _, step := range []struct{ name, file string }{
		{"directory", runDir + "/machines/*"},
		{"gate", runDir + "/machines/*/gate"},
		{"UID range", runDir + "/uid/[0-9]*"},
		{"writable layer", stateDir + "/machines/*"},
		{"socket", runDir + "/machines/*/notify"},
		{"unit", "/run/systemd/transient/nomad-nspawn-*.service"},
		{"open gate", runDir + "/machines/*/gate/socket"},
		{"word", runDir + "/machines/*/begun"},
		{"payload", "/var/lib/nomad/alloc/*/alloc/data/runs"},
	} {
		appear := func(l *lab) error { return hostproc.Appear(l.ctx, l.agent.Host, step.file) }
		tests = append(tests, test{"plugin killed at " + step.name, func(l *lab) { testStart(l, asService(command), appear, killPlugin) }})
	}
	mounted := func(l *lab) error { return hostproc.Appear(l.ctx, l.agent.Host, runDir+"/namespaces/*.mnt") }
	started := func(l *lab) error {
		return hostproc.Appear(l.ctx, l.agent.Host, "/run/systemd/transient/nomad-nspawn-*.service")
	}
	prepared := func(l *lab) error { return hostproc.Appear(l.ctx, l.agent.Host, runDir+"/machines/*/gate") }
	return append(tests,
		test{"bus away during a start", func(l *lab) { testStartWithoutBus(l, prepared) }},
		test{"plugin killed at mount", func(l *lab) { testStart(l, asService(command), mounted, killPlugin) }},
		test{"plugin stopped during a start", func(l *lab) { testStart(l, asService(command), mounted, pausePlugin) }},
		test{"agent killed during a start", func(l *lab) { testStart(l, asService(command), started, killAgentDuringStart) }},
		test{"plugin killed at mount, with a forwarded port", func(l *lab) { testStart(l, serving, mounted, killPlugin) }},
		test{"plugin killed at unit, with a forwarded port", func(l *lab) { testStart(l, serving, started, killPlugin) }},
		test{"agent killed during a start, with a forwarded port", func(l *lab) { testStart(l, serving, started, killAgentDuringStart) }},
	)
}

// pausePlugin sleeps, because there is no event to wait for.
func pausePlugin(l *lab, plugin hostproc.Process) error {
	if err := plugin.Signal(unix.SIGSTOP); err != nil {
		return err
	}
	select {
	case <-time.After(3 * time.Second):
	case <-l.ctx.Done():
	}
	return plugin.Signal(unix.SIGCONT)
}

func killAgentDuringStart(l *lab, _ hostproc.Process) error {
	p, err := hostproc.One(l.agent.Host, hostproc.Agent)
	if err != nil {
		return err
	}
	if err := p.Signal(unix.SIGKILL); err != nil {
		return err
	}
	if err := l.agent.Stop(l.ctx); err != nil { // returns when systemd has noticed the end
		return err
	}
	return l.agent.Start(l.ctx)
}

func testStart(l *lab, what job, step func(*lab) error, strike func(*lab, hostproc.Process) error) {
	plugin := l.process(hostproc.Plugin)
	struck := make(chan error, 1)
	go func() {
		err := step(l)
		if err == nil {
			err = strike(l, plugin)
		}
		struck <- err
	}()
	al := l.start(what)
	select {
	case err := <-struck:
		must.NoError(l, err)
	case <-l.ctx.Done():
		l.Fatal("the start does not reach this step")
	}
	must.NoError(l, al.Running(l.ctx))
	l.awaitRecovery(al)
	l.awaitOutput(al, "ready\n")
	l.oneContainer(al)
	l.awaitServing(al, what)
	// If Nomad did not know of the start, it has replaced the payload.
	must.Between(l, 1, l.runs(al), 2)
	now, err := al.Stop(l.ctx)
	must.NoError(l, err)
	must.Eq(l, 9, l.exitCode(now))
	must.SliceLen(l, 1, events(now, api.TaskTerminated), must.Sprint(agent.Events(now)))
	must.Zero(l, now.TaskStates["main"].Restarts)
}

// testStartWithoutBus stops the bus when a start has reached a step. The driver cannot
// undo the start then.
func testStartWithoutBus(l *lab, step func(*lab) error) {
	plugin := l.process(hostproc.Plugin)
	stopped := make(chan error, 1)
	go func() {
		err := step(l)
		if err == nil {
			err = plugin.Signal(unix.SIGSTOP)
		}
		stopped <- err
	}()
	al := l.start(job{tasks: []task{{script: mark}}})
	must.NoError(l, <-stopped)
	l.atEnd("systemctl", "start", "dbus.socket", "dbus.service")
	l.onHost("systemctl", "stop", "dbus.socket", "dbus.service")
	must.NoError(l, plugin.Signal(unix.SIGCONT))
	_, err := al.Await(l.ctx, "started or refused", func(now *api.Allocation) bool {
		return len(events(now, api.TaskStarted)) > 0 || len(events(now, api.TaskDriverFailure)) > 0
	})
	must.NoError(l, err)
	// If the start was faster than the stop of the bus, this reports its end.
	l.onHost("systemctl", "start", "dbus.socket", "dbus.service")
	l.ended(al)
}
