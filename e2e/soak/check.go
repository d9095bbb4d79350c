package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/hashicorp/nomad/api"

	"nomad-driver-nspawn/e2e/agent"
)

func (s *soak) check(ctx context.Context, cycles []*cycle, before measure, v *violations) {
	log, err := s.agent.Log(ctx)
	if err != nil {
		v.add("%v", err)
		return
	}
	for _, c := range cycles {
		s.checkRuns(c, v)
	}
	races, err := filepath.Glob(filepath.Join(s.agent.Host.Root(), raceLog+".*"))
	if err != nil {
		v.add("%v", err)
	}
	for _, path := range races {
		text, err := os.ReadFile(path)
		v.add("data race (%v):\n%s", err, text)
	}
	if strings.Contains(log, "panic:") {
		v.add("panic: %s", excerpt(log, "panic:"))
	}
	if err := s.awaitReaper(ctx, before); err != nil {
		v.add("%v", err)
		return
	}
	after, err := s.measure(ctx)
	if err != nil {
		v.add("%v", err)
		return
	}
	fmt.Printf("plugin before: %s\nplugin after:  %s\n", before, after)
	before.compare(after, v)
}

// reaperTimeout is enough for the reaper to find everything that Nomad did not ask it to
// remove. At the time of a check, both the machine and the plugin must be older than the
// grace period (agent.hcl).
const reaperTimeout = 2 * (10 + 10) * time.Second

// awaitReaper returns when nothing is left that was not there before, or when the timeout
// is over. The comparison of the measures then reports what is left. No event reports the
// reaper's work, so this polls.
func (s *soak) awaitReaper(ctx context.Context, before measure) error {
	for deadline := time.Now().Add(reaperTimeout); ; {
		now, err := s.inventory(ctx)
		if err != nil {
			return err
		}
		if len(without(now, before.inventory)) == 0 || time.Now().After(deadline) {
			return nil
		}
		select {
		case <-time.After(time.Second):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func excerpt(log, from string) string {
	_, text, _ := strings.Cut(log, from)
	return from + text[:min(len(text), 4000)]
}

// checkRuns compares the marks that a cycle's payload has left with what Nomad reports.
func (s *soak) checkRuns(c *cycle, v *violations) {
	state := c.final.TaskStates["main"]
	if state == nil {
		v.add("job %s, allocation %s: has no task", c.job, c.alloc)
		return
	}
	bad := func(format string, values ...any) {
		v.add("%s job %s, allocation %s, hit %d times: %s; marks %q; events:\n%s", c.kind, c.job, c.alloc, c.kills.Load(),
			fmt.Sprintf(format, values...), c.marks, agent.Events(c.final))
	}
	started, told := 0, []int{}
	for _, event := range state.Events {
		switch event.Type {
		case api.TaskStarted:
			started++
		case restoreFailed:
			bad("a task was lost when the agent was killed")
		case api.TaskTerminated:
			if code, own := exitCode(event); own {
				told = append(told, code)
			}
		case api.TaskDriverFailure:
			// A machine that is hit during its setup does not start.
			if c.kills.Load() == 0 && !pluginDied(event) {
				bad("a start failed")
			}
		}
	}
	restarts := int(state.Restarts)
	if started > restarts+1 {
		bad("%d starts and %d restarts", started, restarts)
	}
	if c.kind == booted {
		return
	}
	replaced := s.replaced(state)
	more := max(c.count("begin")-(restarts+1), 0)
	if more > replaced {
		bad("the payload ran %d times with %d restarts", c.count("begin"), restarts)
	}
	s.replacements += more
	if slices.ContainsFunc(told, func(code int) bool { return code != c.code }) {
		bad("exit codes %v are reported, want %d", told, c.code)
	}
	if len(state.Events) == maxEvents {
		s.forgetful++
		return
	}
	// The code is lost if a payload is hit after it has announced its end and before it
	// has ended. An end is reported twice if the agent is killed before it has recorded
	// all of it.
	lost := c.count("end") - len(told)
	if lost > int(c.kills.Load())+replaced || -lost > s.agentDeaths(state) {
		bad("%d exit codes of %d are reported: %v", len(told), c.count("end"), told)
	}
	s.again += max(-lost, 0)
}

// maxEvents is the number of events that Nomad keeps per task (nomad/structs,
// maxTaskEvents in client/allocrunner/taskrunner).
const maxEvents = 10

// agentDeaths returns how often the agent was killed during the task's life.
func (s *soak) agentDeaths(state *api.TaskState) (n int) {
	if len(state.Events) == 0 { // given up before the first event
		return 0
	}
	first, last := state.Events[0], state.Events[len(state.Events)-1]
	for _, kill := range s.agentKills {
		if kill.After(time.Unix(0, first.Time)) && kill.Before(time.Unix(0, last.Time)) {
			n++
		}
	}
	return n
}

// restoreFailed is the type of an event for which Nomad's API has no constant
// (nomad/structs/structs.go, TaskRestoreFailed).
const restoreFailed = "Failed Restoring Task"

// exitCode returns the exit code of an event, and whether it is the payload's own code and
// not caused by a strike.
func exitCode(event *api.TaskEvent) (code int, own bool) {
	code, err := strconv.Atoi(event.Details["exit_code"])
	killed := event.Details["signal"] != "0" && event.Details["signal"] != ""
	return code, err == nil && !killed && code != 1 && code != 255 && code < 128
}

// replaced returns how often the task may have been started again without Nomad knowing:
// the agent was killed before it had recorded a start.
func (s *soak) replaced(state *api.TaskState) (times int) {
	const window = time.Minute // for the agent to come back
	for _, kill := range s.agentKills {
		for _, event := range state.Events {
			if since := time.Unix(0, event.Time).Sub(kill); event.Type == api.TaskStarted && since > 0 && since < window {
				times++
			}
		}
	}
	return times
}

// givenUp reports whether Nomad failed the task because the plugin died in a hook before
// its start, or for a second time during its start. Nomad does not repeat these.
func (c *cycle) givenUp() bool {
	state := c.final.TaskStates["main"]
	return state != nil && state.Failed && (len(state.Events) == 0 || slices.ContainsFunc(state.Events, pluginDied))
}

func pluginDied(event *api.TaskEvent) bool {
	return strings.Contains(event.DisplayMessage+event.Details["driver_error"], "plugin is shut down")
}

// count returns the number of marks of a kind.
func (c *cycle) count(kind string) (n int) {
	for _, mark := range c.marks {
		if strings.HasPrefix(mark, kind+" ") {
			n++
		}
	}
	return n
}
