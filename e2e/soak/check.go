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

// reaperTimeout is for the reaper to find all that Nomad did not ask it to remove: a
// machine has to be as old as the grace, and so has the plugin, at a look (agent.hcl).
const reaperTimeout = 2 * (10 + 10) * time.Second

// awaitReaper returns when nothing more is left than before, or nothing will change
// that. What is left then is told by the comparison of the measures. No event tells
// of the reaper's work.
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

// checkRuns compares the marks of a cycle's payload with what Nomad tells.
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
			bad("a task was lost over a death of the agent")
		case api.TaskTerminated:
			if code, own := exitCode(event); own {
				told = append(told, code)
			}
		case api.TaskDriverFailure:
			// A machine that is hit while it is set up does not start.
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
		bad("exit codes %v are told, which should be %d", told, c.code)
	}
	if len(state.Events) == maxEvents {
		s.forgetful++
		return
	}
	// Of a payload that says that it ends and is hit before it has, the code is
	// lost. An agent that is killed after an end tells it again, if it has not
	// recorded all of it.
	lost := c.count("end") - len(told)
	if lost > int(c.kills.Load())+replaced || -lost > s.agentDeaths(state) {
		bad("%d exit codes of %d are told: %v", len(told), c.count("end"), told)
	}
	s.again += max(-lost, 0)
}

// maxEvents is how many of a task Nomad keeps (nomad/structs, maxTaskEvents in
// client/allocrunner/taskrunner).
const maxEvents = 10

// agentDeaths is how often the agent was killed in the task's life.
func (s *soak) agentDeaths(state *api.TaskState) (n int) {
	if len(state.Events) == 0 { // given up before anything
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

// restoreFailed is the type of an event that Nomad's API has no name for
// (nomad/structs/structs.go, TaskRestoreFailed).
const restoreFailed = "Failed Restoring Task"

// exitCode tells whether the code is the payload's own, not that of its death.
func exitCode(event *api.TaskEvent) (code int, own bool) {
	code, err := strconv.Atoi(event.Details["exit_code"])
	killed := event.Details["signal"] != "0" && event.Details["signal"] != ""
	return code, err == nil && !killed && code != 1 && code != 255 && code < 128
}

// replaced is how often the task may have been started anew without Nomad
// knowing: the agent was killed before it has recorded a start.
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

// givenUp says that Nomad has failed the task because the plugin died in a hook
// before its start, or a second time in its start, which Nomad does not repeat.
func (c *cycle) givenUp() bool {
	state := c.final.TaskStates["main"]
	return state != nil && state.Failed && (len(state.Events) == 0 || slices.ContainsFunc(state.Events, pluginDied))
}

func pluginDied(event *api.TaskEvent) bool {
	return strings.Contains(event.DisplayMessage+event.Details["driver_error"], "plugin is shut down")
}

// count is the number of marks of a kind.
func (c *cycle) count(kind string) (n int) {
	for _, mark := range c.marks {
		if strings.HasPrefix(mark, kind+" ") {
			n++
		}
	}
	return n
}
