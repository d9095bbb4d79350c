//go:build e2e

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/nomad/api"
	"github.com/shoenig/test/must"

	"nomad-driver-nspawn/e2e/agent"
	"nomad-driver-nspawn/nspawn/machine"
)

// lab is a test with its agent and host.
type lab struct {
	*testing.T
	ctx   context.Context
	agent *agent.Agent
	jobs  atomic.Int32
}

func newLab(t *testing.T, a *agent.Agent) *lab { return newLabFor(t, a, testTimeout) }

func newLabFor(t *testing.T, a *agent.Agent, timeout time.Duration) *lab {
	ctx, cancel := context.WithTimeout(t.Context(), timeout)
	t.Cleanup(cancel)
	return &lab{T: t, ctx: ctx, agent: a}
}

// sub runs a part of the test under a separate name.
func (l *lab) sub(name string, run func(*lab)) {
	l.Run(name, func(t *testing.T) { run(newLab(t, l.agent)) })
}

// parallel is like sub, for parts that may run at the same time.
func (l *lab) parallel(name string, run func(*lab)) {
	l.Run(name, func(t *testing.T) {
		t.Parallel()
		run(newLab(t, l.agent)) // its timeout starts now
	})
}

// job is what differs between the jobs of the tests. A job has one group, which is not
// tried again when it fails.
type job struct {
	kind  string // batch when empty
	group string // more of the group
	tasks []task
}

// task runs a script in the busybox image, or what config says.
type task struct {
	name   string // main when empty
	script string
	config string // more of the driver's config
	more   string // more of the task
	device string // more of its resources
}

const service = "service"

var notName = regexp.MustCompile(`[^a-z0-9]+`)

// hcl returns the job file.
func (l *lab) hcl(j job) string {
	name := notName.ReplaceAllString(strings.ToLower(l.Name()), "-") + fmt.Sprint("-", l.jobs.Add(1))
	kind := j.kind
	if kind == "" {
		kind = "batch"
	}
	var tasks strings.Builder
	for _, t := range j.tasks {
		tasks.WriteString(t.hcl())
	}
	return fmt.Sprintf(`job %q {
  type = %q
  group "g" {
    restart {
      attempts = 0
      mode     = "fail"
    }
    reschedule {
      attempts  = 0
      unlimited = false
    }
    %s
%s  }
}
`, name, kind, j.group, tasks.String())
}

func (t task) hcl() string {
	config := t.config
	if t.script != "" {
		config += fmt.Sprintf("\nimage = \"busybox\"\ncommand = \"/bin/sh\"\nargs = [\"-c\", %s]\n", quote(t.script))
		if !strings.Contains(config, "network_veth") {
			config += "network_veth = false\n"
		}
	}
	name := t.name
	if name == "" {
		name = "main"
	}
	return fmt.Sprintf(`task %q {
  driver = "nspawn"
  config {
    %s
  }
  resources {
    cpu    = 20
    memory = 32
    %s
  }
  %s
}
`, name, config, t.device, t.more)
}

// quote returns any text as an HCL string.
func quote(text string) string {
	quoted, err := json.Marshal(text)
	if err != nil {
		panic(err)
	}
	return strings.NewReplacer("${", "$${", "%{", "%%{").Replace(string(quoted))
}

// start runs a job and returns its first allocation. The job is removed at the end of the
// test.
func (l *lab) start(j job) *agent.Alloc {
	l.Helper()
	return l.startHCL(l.hcl(j))[0]
}

func (l *lab) startHCL(hcl string) []*agent.Alloc {
	l.Helper()
	allocs, err := l.agent.Run(l.ctx, hcl)
	must.NoError(l, err)
	l.removeAtEnd(allocs)
	return allocs
}

func (l *lab) removeAtEnd(allocs []*agent.Alloc) {
	l.Helper()
	for _, al := range allocs {
		l.Cleanup(func() {
			ctx, cancel := context.WithTimeout(context.Background(), testTimeout)
			defer cancel()
			if l.Failed() {
				l.explain(ctx, al)
			}
			must.NoError(l, al.Remove(ctx))
		})
	}
}

// explain logs the output of an allocation and its part of the host's journal.
func (l *lab) explain(ctx context.Context, al *agent.Alloc) {
	tails, err := al.Tails(ctx)
	if err != nil {
		l.Log(err)
	}
	l.Log(tails)
	l.Logf("unit of %s:\n%s", al.Name, l.agent.Journal(ctx, "nomad-nspawn-*"+al.ID+".service", 15))
	text, err := l.agent.Log(ctx)
	if err != nil {
		l.Log(err)
	}
	for line := range strings.Lines(text) {
		if strings.Contains(line, al.ID) && !strings.Contains(line, "http: request complete") {
			l.Log(strings.TrimSpace(line))
		}
	}
}

// running starts a service with one task and waits until it is running.
func (l *lab) running(t task) *agent.Alloc {
	l.Helper()
	al := l.start(job{kind: service, tasks: []task{t}})
	must.NoError(l, al.Running(l.ctx))
	return al
}

// ready starts a service with one task and waits until its script has written "ready".
func (l *lab) ready(t task) *agent.Alloc {
	l.Helper()
	al := l.running(t)
	l.waitLog(al, agent.Stdout, "ready\n")
	return al
}

func (l *lab) waitLog(al *agent.Alloc, stream, until string) string {
	l.Helper()
	text, err := al.Log(l.ctx, "main", stream, until)
	must.NoError(l, err)
	return text
}

// Every script of finish writes end to both logs. Nomad may report the end of a task
// before its last lines can be read.
const end = "=the end="

// finish runs a script to its end.
func (l *lab) finish(t task) agent.Output {
	l.Helper()
	return l.finishIn(job{tasks: []task{t}})
}

func (l *lab) finishIn(j job) agent.Output {
	l.Helper()
	j.tasks[0].script = "trap 'echo " + end + "; echo " + end + " >&2' EXIT\n" + j.tasks[0].script
	al := l.start(j)
	now := l.ended(al)
	code := l.exitCode(now)
	return agent.Output{
		Code:   code,
		Stdout: strings.TrimSuffix(l.waitLog(al, agent.Stdout, end), end+"\n"),
		Stderr: strings.TrimSuffix(l.waitLog(al, agent.Stderr, end), end+"\n"),
	}
}

// exitCode returns the exit code in the last event of that kind of the task main.
func (l *lab) exitCode(now *api.Allocation) int {
	l.Helper()
	list := events(now, api.TaskTerminated)
	must.SliceNotEmpty(l, list, must.Sprintf("the task has not ended by itself:\n%s", agent.Events(now)))
	code, err := strconv.Atoi(list[len(list)-1].Details["exit_code"])
	must.NoError(l, err)
	return code
}

// events returns the events of one kind of the task main.
func events(now *api.Allocation, kind string) []*api.TaskEvent {
	var list []*api.TaskEvent
	if state := now.TaskStates["main"]; state != nil {
		for _, event := range state.Events {
			if event.Type == kind {
				list = append(list, event)
			}
		}
	}
	return list
}

// exec runs a command in the task main, which must succeed.
func (l *lab) exec(al *agent.Alloc, argv ...string) string {
	l.Helper()
	out, err := al.Exec(l.ctx, "main", "", argv...)
	must.NoError(l, err)
	must.Zero(l, out.Code, must.Sprintf("%q: %s%s", argv, out.Stdout, out.Stderr))
	return out.Stdout
}

// onHost runs a command on the host, which must succeed.
func (l *lab) onHost(name string, args ...string) string {
	l.Helper()
	out, err := l.agent.Command(l.ctx, name, args...)
	must.NoError(l, err)
	return out
}

// atEnd runs a command on the host when the test is over.
func (l *lab) atEnd(name string, args ...string) {
	l.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), testTimeout)
		defer cancel()
		_, err := l.agent.Command(ctx, name, args...)
		must.NoError(l, err)
	})
}

// onHostAfter is like onHost, for use at the end of the test.
func (l *lab) onHostAfter(name string, args ...string) string {
	l.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), testTimeout)
	defer cancel()
	out, err := l.agent.Command(ctx, name, args...)
	must.NoError(l, err)
	return out
}

// ended waits until an allocation has ended.
func (l *lab) ended(al *agent.Alloc) *api.Allocation {
	l.Helper()
	now, err := al.Ended(l.ctx)
	must.NoError(l, err)
	return now
}

// refusal waits until an allocation has ended, and returns the only message that says why
// the task main did not start.
func (l *lab) refusal(al *agent.Alloc) string {
	l.Helper()
	now := l.ended(al)
	must.Eq(l, api.AllocClientStatusFailed, now.ClientStatus, must.Sprint(agent.Events(now)))
	list := append(events(now, api.TaskDriverFailure), events(now, api.TaskFailedValidation)...)
	must.SliceLen(l, 1, list, must.Sprint(agent.Events(now)))
	must.SliceEmpty(l, events(now, api.TaskStarted))
	return list[0].DisplayMessage
}

func machineOf(al *agent.Alloc) string { return machine.Name(al.ID, "main") }
func unitOf(al *agent.Alloc) string    { return machine.UnitName(machineOf(al)) }

// allocDir returns the allocation's directory on the host.
func allocDir(al *agent.Alloc) string { return "/var/lib/nomad/alloc/" + al.ID }

// pid returns the PID of systemd-nspawn on the host.
func (l *lab) pid(al *agent.Alloc) string {
	l.Helper()
	return strings.TrimSpace(l.onHost("systemctl", "show", "--property=MainPID", "--value", unitOf(al)))
}
