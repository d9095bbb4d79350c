//go:build e2e

package e2e

import (
	"strings"
	"time"

	"github.com/hashicorp/nomad/api"
	"github.com/shoenig/test/must"

	"nomad-driver-nspawn/e2e/agent"
)

var bootTests = []test{
	{"booted: systemd's tools", testBootTools},
	{"booted: exec", testBootExec},
	{"booted: exit codes", testBootExit},
	{"booted: reboot", testBootReboot},
	{"booted: stop", testBootStop},
	{"a command says that it is ready", testNotifyReady},
}

// booted starts a task that boots the Debian image.
func (l *lab) booted(config ...string) *agent.Alloc {
	l.Helper()
	config = append(config, `image = "debian"`)
	al := l.start(job{tasks: []task{{config: strings.Join(config, "\n"), more: "env { COLOR = \"blue\" }\nkill_timeout = \"" + patience + `"`}}})
	must.NoError(l, al.Running(l.ctx))
	l.awaitBoots(al, 1)
	return al
}

// awaitBoots waits until the system in the machine has booted a number of times, with all
// of its units.
func (l *lab) awaitBoots(al *agent.Alloc, times int) {
	l.Helper()
	l.awaitReady(al, times)
	out, err := al.Exec(l.ctx, "main", "", "sh", "-c", "systemctl is-system-running --wait || systemctl --failed --no-legend --plain")
	must.NoError(l, err)
	must.Eq(l, "running\n", out.Stdout)
}

// awaitReady waits until the driver has reported a number of times that the machine is
// ready.
func (l *lab) awaitReady(al *agent.Alloc, times int) {
	l.Helper()
	_, err := al.Await(l.ctx, "ready", func(now *api.Allocation) bool { return told(now, "Machine is ready") >= times })
	must.NoError(l, err)
}

// told returns how often the driver has sent a message.
func told(now *api.Allocation, message string) (times int) {
	for _, event := range events(now, api.TaskDriverMessage) {
		if event.DisplayMessage == message {
			times++
		}
	}
	return times
}

func testBootTools(l *lab) {
	al := l.booted()
	machine, unit := machineOf(al), unitOf(al)
	id := strings.ReplaceAll(al.ID, "-", "")
	must.StrContains(l, l.onHost("machinectl", "list", "--no-legend"), machine)
	must.StrContains(l, l.onHost("machinectl", "show", machine), "State=running\n")
	must.StrContains(l, l.onHost("machinectl", "show", machine), "Unit="+unit+"\n")
	must.StrContains(l, l.onHost("machinectl", "status", "--no-pager", machine), "systemd-journald.service")
	must.StrContains(l, l.onHost("systemctl", "status", "--no-pager", unit), "Nomad task main of group g, job "+al.Job)
	must.Eq(l, "hello\n", l.onHost("systemd-run", "--machine="+machine, "--pipe", "--wait", "--quiet", "echo", "hello"))

	must.Eq(l, id+"\n", l.exec(al, "cat", "/etc/machine-id"))
	l.exec(al, "systemd-cat", "echo", "a line for the journal")
	l.exec(al, "journalctl", "--sync")
	must.StrContains(l, l.onHost("journalctl", "--machine="+machine, "--no-pager", "--output=cat"), "a line for the journal\n")
	l.waitLog(al, agent.Stdout, "a line for the journal") // forward_journal
	l.onHost("journalctl", "--sync")
	found := l.onHost("journalctl", "--unit="+unit, "--no-pager", "--output=json", "NOMAD_ALLOC_ID="+al.ID)
	must.StrContains(l, found, `"NOMAD_TASK_NAME":"main"`)
}

func testBootExec(l *lab) {
	al := l.booted()
	out, err := al.Exec(l.ctx, "main", "from stdin", "sh", "-c", "cat; echo \" in $COLOR\"; echo oops >&2; exit 3")
	must.NoError(l, err)
	must.Eq(l, agent.Output{Code: 3, Stdout: "from stdin in blue\n", Stderr: "oops\n"}, out)
}

func testBootExit(l *lab) {
	for command, want := range map[string]int{"systemctl exit 7": 7, "systemctl poweroff": 0} {
		l.sub(command, func(l *lab) {
			al := l.booted()
			_, _ = al.Exec(l.ctx, "main", "", strings.Fields(command)...) // may be killed before it answers
			now := l.ended(al)
			must.Eq(l, want, l.exitCode(now))
		})
	}
	l.sub("signal", func(l *lab) {
		al := l.booted()
		must.NoError(l, al.Signal(l.ctx, "main", "SIGRTMIN+4")) // poweroff.target (systemd(1))
		now := l.ended(al)
		must.Zero(l, l.exitCode(now))
	})
}

// The machine reboots by itself. For Nomad, the same task goes on.
func testBootReboot(l *lab) {
	al := l.booted(`sysctl = { "kernel.msgmax" = "9000" }`)
	l.exec(al, "touch", "/var/kept")
	before := l.pid(al)
	_, _ = al.Exec(l.ctx, "main", "", "systemctl", "reboot")
	l.awaitBoots(al, 2)
	must.NotEq(l, before, l.pid(al))
	l.exec(al, "stat", "/var/kept")
	must.Eq(l, "9000\n", l.exec(al, "cat", "/proc/sys/kernel/msgmax"))
	now, err := al.Stop(l.ctx)
	must.NoError(l, err)
	must.SliceLen(l, 1, events(now, api.TaskStarted), must.Sprint(agent.Events(now)))
	must.One(l, told(now, "Machine rebooted from inside"), must.Sprint(agent.Events(now)))
}

func testBootStop(l *lab) {
	al := l.booted()
	began := time.Now()
	now, err := al.Stop(l.ctx)
	must.NoError(l, err)
	must.Less(l, 20*time.Second, time.Since(began))
	must.Zero(l, l.exitCode(now))
	l.gone(al)
}

// testNotifyReady runs what README recommends. It must not wait for an answer: that fails
// if nspawn refuses descriptors on its socket, as systemd 262 on Linux 6.16 does.
func testNotifyReady(l *lab) {
	l.eachMode(func(l *lab, config string) {
		al := l.running(task{config: config + `
image        = "debian"
network_veth = false
notify_ready = true
command      = ["/bin/sh", "-c", "systemd-notify --pid=1 --no-block --ready && exec sleep 1000"]
`})
		l.awaitReady(al, 1)
	})
}
