//go:build e2e

package e2e

import (
	"context"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/nomad/api"
	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"

	"nomad-driver-nspawn/e2e/agent"
	"nomad-driver-nspawn/e2e/host"
	"nomad-driver-nspawn/e2e/soak/hostproc"
)

// TestFaults causes one fault after the other while tasks of all kinds run, on a host of
// each chosen suite. After each fault, the host's inventory must be the same as before.
func TestFaults(t *testing.T) {
	for _, suite := range host.Chosen() {
		t.Run(suite, testFaults)
	}
}

// awaitInventory waits until the host's inventory is the same as before. What could not be
// removed during a fault is removed soon after it. No event reports this, so it polls.
func awaitInventory(t *testing.T, a *agent.Agent, before []string) {
	t.Helper()
	for deadline := time.Now().Add(removalTimeout); ; time.Sleep(200 * time.Millisecond) {
		now := inventory(t, a)
		if slices.Equal(before, now) {
			return
		}
		if time.Now().After(deadline) {
			must.Eq(t, before, now)
		}
	}
}

// removalTimeout is twice the longest time between two attempts to remove, after a fault
// of half a minute.
const removalTimeout = time.Minute

// faultTimeout is enough for the longest fault: a call to a bus that does not answer is
// given up after 2 min, and tasks start before and after it.
const faultTimeout = 5 * time.Minute

func testFaults(t *testing.T) {
	t.Parallel()
	a := up(t, t.Name()[strings.LastIndex(t.Name(), "/")+1:])
	// File systems of their own, which the tests fill.
	for _, dir := range []string{runDir, stateDir} {
		_, err := a.Command(t.Context(), "sh", "-c", "mkdir -p $0 && mount -t tmpfs -o "+room+" tmpfs $0", dir)
		must.NoError(t, err)
	}
	warmUp(t, a)
	for _, group := range [][]test{disturbances(), deaths, startFaults(), refusing()} {
		for _, fault := range group {
			t.Run(fault.name, func(t *testing.T) {
				before := inventory(t, a)
				t.Run("fault", func(t *testing.T) {
					l := newLabFor(t, a, faultTimeout)
					_, err := a.AwaitDriver(l.ctx, true) // the fault before may have killed the plugin
					must.NoError(l, err)
					fault.run(l)
				})
				awaitInventory(t, a, before)
			})
		}
	}
}

// disturbance is a fault that running tasks must not notice. A task ends between its begin
// and its end.
type disturbance struct {
	name       string
	begin, end func(*lab)
}

func disturbances() (tests []test) {
	plugin, bus, machined := hostproc.Kind(hostproc.Plugin), hostproc.Daemon("dbus-daemon"), hostproc.Daemon("systemd-machined")
	for _, d := range []disturbance{
		{"plugin killed", sends(plugin, unix.SIGSTOP), sends(plugin, unix.SIGKILL)},
		{"plugin stopped for a while", sends(plugin, unix.SIGSTOP), sends(plugin, unix.SIGCONT)},
		{"agent killed", does((*agent.Agent).Kill), does((*agent.Agent).Start)},
		{"bus killed", sends(bus, unix.SIGSTOP), sends(bus, unix.SIGKILL)},
		{"machined killed", sends(machined, unix.SIGKILL), func(l *lab) { l.onHost("machinectl", "list") }},
		{"systemd re-executed", func(l *lab) { l.onHost("systemctl", "daemon-reexec") }, nothing},
		{"systemd reloaded", func(l *lab) { l.onHost("systemctl", "daemon-reload") }, nothing},
	} {
		tests = append(tests, test{d.name, d.test})
	}
	return tests
}

func nothing(*lab) {}

func sends(kind hostproc.Kind, sig unix.Signal) func(*lab) {
	return func(l *lab) { must.NoError(l, l.process(kind).Signal(sig)) }
}

func does(what func(*agent.Agent, context.Context) error) func(*lab) {
	return func(l *lab) { must.NoError(l, what(l.agent, l.ctx)) }
}

func (l *lab) process(kind hostproc.Kind) hostproc.Process {
	l.Helper()
	p, err := hostproc.One(l.agent.Host, kind)
	must.NoError(l, err)
	return p
}

// Scripts of the tasks. Each run adds a line to the file runs.
const (
	mark    = "echo run >>/alloc/data/runs\n"
	handler = mark + "trap 'exit 9' TERM\n" + loop
	waiter  = mark + "mkfifo /alloc/data/go; echo ready; read word </alloc/data/go; exit 7\n"
)

func (d disturbance) test(l *lab) {
	running := l.ready(task{script: handler, more: `kill_timeout = "` + patience + `"`})
	ending := l.ready(task{script: waiter})
	booted := l.start(job{tasks: []task{booting}})
	l.awaitReady(booted, 1)
	leaders := []hostproc.Process{l.leader(running), l.leader(booted)}
	last := l.process(hostproc.Nspawn(machineOf(ending)))

	d.begin(l)
	l.release(ending)
	must.NoError(l, last.Ended(l.ctx))
	d.end(l)

	now := l.ended(ending)
	l.ranOnce(ending, now, 7)
	l.awaitRecovery(running)
	l.awaitRecovery(booted)
	must.Eq(l, leaders, []hostproc.Process{l.leader(running), l.leader(booted)})
	l.oneContainer(running)
	l.oneContainer(booted)
	now, err := running.Stop(l.ctx)
	must.NoError(l, err)
	l.ranOnce(running, now, 9)
	now, err = booted.Stop(l.ctx)
	must.NoError(l, err)
	must.Zero(l, l.exitCode(now))
	must.SliceLen(l, 1, events(now, api.TaskStarted), must.Sprint(agent.Events(now)))
}

func (l *lab) leader(al *agent.Alloc) hostproc.Process {
	l.Helper()
	return l.process(hostproc.Leader(machineOf(al)))
}

// release makes the script waiter end.
func (l *lab) release(al *agent.Alloc) {
	l.Helper()
	l.onHost("sh", "-c", "echo go >"+allocDir(al)+"/alloc/data/go")
}

// ranOnce checks that the payload has run once and that its exit code is reported once: by
// each agent, for one that is killed just then has told of the end but has not kept it.
func (l *lab) ranOnce(al *agent.Alloc, now *api.Allocation, code int) {
	l.Helper()
	must.SliceLen(l, 1, events(now, api.TaskStarted), must.Sprint(agent.Events(now)))
	agents, ends := events(now, api.TaskReceived), events(now, api.TaskTerminated)
	must.Between(l, 1, len(ends), len(agents), must.Sprint(agent.Events(now)))
	for _, end := range ends {
		must.Eq(l, strconv.Itoa(code), end.Details["exit_code"])
	}
	must.One(l, l.runs(al))
}

// runs returns how often the payload has started.
func (l *lab) runs(al *agent.Alloc) int {
	l.Helper()
	return strings.Count(l.onHost("cat", allocDir(al)+"/alloc/data/runs"), "run\n")
}

// oneContainer checks that an allocation has exactly one machine, according to all
// sources.
func (l *lab) oneContainer(al *agent.Alloc) {
	l.Helper()
	l.process(hostproc.Nspawn(machineOf(al)))
	units := l.onHost("systemctl", "list-units", "--all", "--plain", "--no-legend", "nomad-nspawn-*"+al.ID+"*")
	must.One(l, strings.Count(units, "\n"), must.Sprint(units))
}

// deaths are ends of a machine that the payload did not cause. The task is restarted as
// the job says.
var deaths = []test{
	{"nspawn killed", func(l *lab) { testDeath(l, asService(command), hostproc.Nspawn) }},
	{"nspawn with a forwarded port killed", func(l *lab) { testDeath(l, serving, hostproc.Nspawn) }},
	{"stub init killed", func(l *lab) { testDeath(l, asService(command), hostproc.Leader) }},
	{"payload killed", func(l *lab) { testDeath(l, asService(command), hostproc.Payload) }},
	{"nspawn of a booted machine killed", func(l *lab) { testDeath(l, asService(booting), hostproc.Nspawn) }},
	{"init of a booted machine killed", func(l *lab) { testDeath(l, asService(booting), hostproc.Leader) }},
}

const restartOnce = `restart {
  attempts = 1
  delay    = "0s"
  interval = "1h"
  mode     = "fail"
}
kill_timeout = "` + patience + `"`

var (
	command = task{script: handler, more: restartOnce}
	booting = task{config: `image = "debian"`, more: restartOnce}
	serving = job{
		kind: service, group: httpPort,
		tasks: []task{{config: forwardHTTP, script: webServer + handler, more: restartOnce}},
	}
)

func asService(t task) job { return job{kind: service, tasks: []task{t}} }

// awaitServing waits until the port of a task, if it has one, is forwarded.
func (l *lab) awaitServing(al *agent.Alloc, what job) {
	l.Helper()
	if what.group != "" {
		must.Eq(l, al.ID+"\n", l.get(l.port(al)))
	}
}

func testDeath(l *lab, what job, kind func(machine string) hostproc.Kind) {
	boots := what.tasks[0].script == ""
	al := l.start(what)
	must.NoError(l, al.Running(l.ctx))
	if boots {
		l.awaitReady(al, 1)
	} else {
		l.waitLog(al, agent.Stdout, "ready\n")
	}
	l.awaitServing(al, what)
	before := l.leader(al)
	must.NoError(l, l.process(kind(machineOf(al))).Signal(unix.SIGKILL))

	now, err := al.Await(l.ctx, "restarted", func(now *api.Allocation) bool { return len(events(now, api.TaskStarted)) > 1 })
	must.NoError(l, err)
	l.awaitRecovery(al)
	must.NotEq(l, before, l.leader(al))
	l.oneContainer(al)
	l.awaitServing(al, what)
	must.SliceLen(l, 1, events(now, api.TaskTerminated), must.Sprint(agent.Events(now)))
	end := events(now, api.TaskTerminated)[0].Details
	must.False(l, end["exit_code"] == "0" && end["signal"] == "0", must.Sprintf("a death is reported as success: %v", end))
	if boots {
		l.awaitReady(al, 2) // a guest that is not ready ignores the signal to stop
	} else {
		must.Eq(l, 2, l.runs(al))
	}

	now, err = al.Stop(l.ctx)
	must.NoError(l, err)
	must.Eq(l, uint64(1), now.TaskStates["main"].Restarts)
	must.SliceLen(l, 2, events(now, api.TaskTerminated), must.Sprint(agent.Events(now)))
	if boots {
		must.Zero(l, l.exitCode(now))
	} else {
		must.Eq(l, 9, l.exitCode(now))
	}
}

const (
	runDir   = "/run/nomad-driver-nspawn"
	stateDir = "/var/lib/nomad-driver-nspawn"
)

// room allows more files than any of these tests creates.
const room = "nr_inodes=10000"

// awaitOutput waits for a line of the task in its log, or in the host's journal if an
// event says so: the log collector ended with the killed plugin.
func (l *lab) awaitOutput(al *agent.Alloc, line string) {
	l.Helper()
	now, err := al.Await(l.ctx, "known", func(*api.Allocation) bool { return true })
	must.NoError(l, err)
	if !strings.Contains(agent.Events(now), "Output goes to the host's journal") {
		l.waitLog(al, agent.Stdout, line)
		return
	}
	out, err := l.agent.Host.Command(l.ctx, "sh", "-c", "journalctl --follow --lines=all --output=cat --unit=$0 | grep -m 1 -x $1", unitOf(al), strings.TrimSpace(line)).Output()
	must.NoError(l, err)
	must.Eq(l, line, string(out))
}

// refusing are faults during which running tasks go on and no other task starts.
func refusing() (tests []test) {
	for name, dir := range map[string]string{"run directory": runDir, "state directory": stateDir} {
		full := func(l *lab) {
			l.onHost("sh", "-c", "mount -o remount,nr_inodes=$(df --output=iused $0 | tail -n 1 | tr -d ' ') $0", dir)
		}
		empty := func(l *lab) { l.onHost("mount", "-o", "remount,"+room, dir) }
		readOnly := func(l *lab) {
			l.onHost("mount", "--bind", dir, dir)
			l.onHost("mount", "-o", "remount,bind,ro", dir)
		}
		writable := func(l *lab) { l.onHost("umount", dir) }
		tests = append(tests,
			test{"full " + name, refusal{full, "no space left on device", replacePlugin, empty}.test},
			test{"read-only " + name, refusal{readOnly, "read-only file system", replacePlugin, writable}.test},
		)
	}
	bus := hostproc.Daemon("dbus-daemon")
	return append(tests, test{"bus that does not answer", refusal{sends(bus, unix.SIGSTOP), "deadline exceeded", nothing, sends(bus, unix.SIGCONT)}.test})
}

// replacePlugin makes a new plugin recover the tasks.
func replacePlugin(l *lab) {
	must.NoError(l, l.agent.Kill(l.ctx))
	l.onHost("pkill", "--full", "--exact", agent.Plugin)
	must.NoError(l, l.agent.Start(l.ctx))
}

type refusal struct {
	begin     func(*lab)
	reason    string // for the user
	meanwhile func(*lab)
	end       func(*lab)
}

func (r refusal) test(l *lab) {
	mended := false
	disturbance{
		begin: func(l *lab) {
			r.begin(l)
			l.Cleanup(func() {
				if !mended {
					r.end(l)
				}
			})
			refused := l.start(job{tasks: []task{{script: mark}}})
			must.StrContains(l, l.refusal(refused), r.reason)
		},
		end: func(l *lab) {
			r.meanwhile(l)
			r.end(l)
			mended = true
		},
	}.test(l)
	must.Eq(l, "again\n", l.finish(task{script: "echo again"}).Stdout)
}
