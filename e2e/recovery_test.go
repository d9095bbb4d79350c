//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/hashicorp/nomad/api"
	"github.com/shoenig/test/must"

	"nomad-driver-nspawn/e2e/agent"
)

// recoveryTests kill the agent, the plugin or the bus while tasks run.
var recoveryTests = []test{
	{"recovery: agent restarted", func(l *lab) { testRecovery(l, l.agent.Restart) }},
	{"recovery: agent killed", func(l *lab) { testRecovery(l, killAgent(l.agent)) }},
	{"recovery: plugin killed", func(l *lab) { testRecovery(l, l.agent.KillPlugin) }},
	{"recovery: bus restarted", func(l *lab) { testRecovery(l, onHost(l.agent, "systemctl", "restart", "dbus.service")) }},
	{"recovery: systemd re-executed", func(l *lab) { testRecovery(l, onHost(l.agent, "systemctl", "daemon-reexec")) }},
	{"recovery: booted machine", testRecoveryBooted},
	{"recovery: network", testRecoveryNetwork},
	{"recovery: task ended without an agent", testEndedMeanwhile},
	{"recovery: host rebooted", testHostRebooted},
}

func killAgent(a *agent.Agent) func(context.Context) error {
	return func(ctx context.Context) error {
		if err := a.Kill(ctx); err != nil {
			return err
		}
		return a.Start(ctx)
	}
}

func onHost(a *agent.Agent, argv ...string) func(context.Context) error {
	return func(ctx context.Context) error {
		_, err := a.Command(ctx, argv[0], argv[1:]...)
		return err
	}
}

// testRecovery checks that a task goes on as if nothing had happened.
func testRecovery(l *lab, disturb func(context.Context) error) {
	al := l.ready(task{
		script: `trap 'echo got USR1' USR1
trap 'exit 9' TERM
echo ready
n=0
while true; do n=$((n + 1)); echo "line $n"; sleep 0.05; done`,
		more: `kill_timeout = "` + patience + `"`,
	})
	pid := l.pid(al)
	before := lastLine(l.waitLog(al, agent.Stdout, "line 10\n"))
	must.NoError(l, disturb(l.ctx))

	l.awaitRecovery(al)
	must.Eq(l, pid, l.pid(al))
	must.NoError(l, al.Signal(l.ctx, "main", "SIGUSR1"))
	l.awaitStats(al, func(usage *api.ResourceUsage) bool { return usage.MemoryStats.RSS > 0 })
	text := l.waitLog(al, agent.Stdout, "got USR1\n")
	last := lastLine(text)
	must.Greater(l, before, last)
	text = l.waitLog(al, agent.Stdout, fmt.Sprintf("line %d\n", last+20))
	for i := range last + 20 {
		must.One(l, strings.Count(text, fmt.Sprintf("\nline %d\n", i+1)), must.Sprintf("line %d", i+1))
	}
	now, err := al.Stop(l.ctx)
	must.NoError(l, err)
	must.Eq(l, 9, l.exitCode(now))
	must.SliceLen(l, 1, events(now, api.TaskStarted), must.Sprint(agent.Events(now)))
	l.gone(al)
}

// testRecoveryNetwork checks that a port always answers, whoever dies, and that it soon
// answers again after all firewall rules of the host have been flushed.
func testRecoveryNetwork(l *lab) {
	al := l.start(job{kind: service, group: httpPort, tasks: []task{{config: forwardHTTP, script: webServer + loop}}})
	must.NoError(l, al.Running(l.ctx))
	l.waitLog(al, agent.Stdout, "ready\n")
	l.answersEverywhere(al, al.ID+"\n", "[::1]")
	must.NoError(l, l.agent.KillPlugin(l.ctx))
	l.answersEverywhere(al, al.ID+"\n", "[::1]")
	l.awaitRecovery(al)
	l.onHost("nft", "flush", "ruleset")
	must.Eq(l, al.ID+"\n", l.onHost("curl", "--silent", "--retry", "10", "--retry-all-errors", "--max-time", "10", fmt.Sprintf("http://127.0.0.1:%d/", l.port(al))))
	l.answersEverywhere(al, al.ID+"\n", "[::1]")
	l.answersBeside(al, al.ID+"\n")
	_, err := al.Stop(l.ctx)
	must.NoError(l, err)
	l.gone(al)
}

// awaitRecovery waits until commands can be run in the task again. Nomad does not report
// when a plugin that has died is back, so this polls.
func (l *lab) awaitRecovery(al *agent.Alloc) {
	l.Helper()
	ticker := time.NewTicker(200 * time.Millisecond)
	defer ticker.Stop()
	for {
		out, err := al.Exec(l.ctx, "main", "", "echo", "done")
		if err == nil {
			must.Eq(l, "done\n", out.Stdout)
			return
		}
		select {
		case <-ticker.C:
		case <-l.ctx.Done():
			l.Fatalf("the task is not recovered: %v", err)
		}
	}
}

// lastLine returns the highest number n of a complete line "line n".
func lastLine(text string) (n int) {
	for line := range strings.Lines(text) {
		if strings.HasSuffix(line, "\n") {
			_, _ = fmt.Sscanf(line, "line %d\n", &n)
		}
	}
	return n
}

func testRecoveryBooted(l *lab) {
	al := l.booted()
	pid := l.pid(al)
	must.NoError(l, killAgent(l.agent)(l.ctx))
	must.Eq(l, "blue\n", l.exec(al, "sh", "-c", "echo $COLOR"))
	must.Eq(l, pid, l.pid(al))
	now, err := al.Stop(l.ctx)
	must.NoError(l, err)
	must.Zero(l, l.exitCode(now))
}

func testEndedMeanwhile(l *lab) {
	al := l.start(job{
		tasks: []task{{script: "mkfifo /alloc/data/go; echo ready; read word </alloc/data/go; exit 7"}},
	})
	must.NoError(l, al.Running(l.ctx))
	l.waitLog(al, agent.Stdout, "ready\n")
	must.NoError(l, l.endsWithoutAgent(al))
	must.NoError(l, l.agent.Start(l.ctx))

	now := l.ended(al)
	must.Eq(l, 7, l.exitCode(now))
	must.SliceLen(l, 1, events(now, api.TaskStarted), must.Sprint(agent.Events(now)))
}

// endsWithoutAgent stops the agent and then makes a task with the script waiter end.
func (l *lab) endsWithoutAgent(al *agent.Alloc) error {
	l.Helper()
	pid := l.pid(al)
	if err := l.agent.Stop(l.ctx); err != nil {
		return err
	}
	l.onHost("sh", "-c", "echo go >"+allocDir(al)+"/alloc/data/go")
	l.onHost("tail", "--pid="+pid, "--follow", "/dev/null") // until nspawn has ended
	return nil
}

// testHostRebooted removes from the host what a reboot removes: all processes and units of
// machines, and the contents of /run. The boot ID does not change, because it belongs to
// the machine.
func testHostRebooted(l *lab) {
	al := l.ready(task{script: mark + "test -e /first && echo not clean\n>/first\n" + loop})
	must.NoError(l, l.agent.Kill(l.ctx))
	l.onHost("pkill", "--full", "--exact", agent.Plugin)
	l.onHost("systemctl", "kill", "--signal=KILL", unitOf(al))
	l.onHost("systemctl", "stop", unitOf(al))
	l.onHost("systemctl", "reset-failed", unitOf(al))
	l.onHost("umount", "--recursive", runDir+"/namespaces")
	l.onHost("umount", allocDir(al)+"/alloc", allocDir(al)+"/main/local")
	l.onHost("sh", "-c", "rm -r "+runDir+"/*")
	must.NoError(l, l.agent.Start(l.ctx))

	must.Eq(l, "ready\nready\n", l.waitLog(al, agent.Stdout, "ready\nready\n"))
	must.Eq(l, 2, l.runs(al))
	l.oneContainer(al)
	_, err := al.Stop(l.ctx)
	must.NoError(l, err)
	l.gone(al)
}
