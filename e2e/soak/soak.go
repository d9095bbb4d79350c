package main

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"nomad-driver-nspawn/e2e/agent"
)

// soak is a run of the soak test on a host.
type soak struct {
	agent *agent.Agent
	opts  options

	alive sync.Map // cycles with an allocation, by machine

	// For the strikes, which come one after the other.
	up         sync.RWMutex // held for writing while the agent is down
	kills      atomic.Int64 // twice per kill of the agent: odd while it is down
	agentKills []time.Time
	struck     map[string]int

	// For the check: ends that were reported twice, starts that replaced one of which the
	// agent did not know, and tasks whose first events are lost.
	again, replacements, forgetful int
}

// quiet is the share of the cycles, at the end, in which the plugin is not killed: a
// plugin that is killed again and again cannot grow.
const quiet = 4

func (s *soak) run(ctx context.Context) ([]string, error) {
	s.struck = map[string]int{}
	before, err := s.start(ctx)
	if err != nil {
		return nil, fmt.Errorf("warm up: %w", err)
	}
	began := time.Now()
	deadline := began.Add(s.opts.duration)
	stormy := s.opts.cycles - s.opts.cycles/quiet
	var v violations
	storm, calm := context.WithCancel(ctx)
	struck := make(chan error, 1)
	go func() { struck <- s.chaos(storm) }()
	cycles := s.cycles(ctx, 0, stormy, deadline, &v)
	calm()
	if err := <-struck; err != nil {
		return nil, err
	}
	// A plugin that has outlived an agent can no longer write to the log.
	if err := s.agent.KillPlugin(ctx); err != nil {
		return nil, err
	}
	if _, err := s.agent.AwaitDriver(ctx, true); err != nil {
		return nil, err
	}
	cycles = append(cycles, s.cycles(ctx, stormy, s.opts.cycles, time.Time{}, &v)...)
	s.check(ctx, cycles, before, &v)
	s.report(cycles, time.Since(began))
	return v.list, ctx.Err()
}

// raceLog is the beginning of the paths to which plugins write the data races they find.
// Their standard error ends with the agent that has started them.
const raceLog = "/var/log/nspawn-race"

// start makes what is made only once and kept, and then measures.
func (s *soak) start(ctx context.Context) (measure, error) {
	const dropIn = "[Service]\nEnvironment=GORACE=log_path=" + raceLog + "\n"
	if err := s.agent.WriteFile("/etc/systemd/system/nomad.service.d/race.conf", dropIn); err != nil {
		return measure{}, err
	}
	if _, err := s.agent.Command(ctx, "systemctl", "daemon-reload"); err != nil {
		return measure{}, err
	}
	if err := s.agent.Restart(ctx); err != nil {
		return measure{}, err
	}
	for _, kind := range []kind{long, booted} {
		c := &cycle{job: "warm-up-" + string(kind), kind: kind, network: networks[len(networks)-1]}
		if err := s.cycle(ctx, c); err != nil {
			return measure{}, err
		}
	}
	return s.measure(ctx)
}

// cycles runs the cycles of a range of numbers, several at a time, and returns those that
// were completed.
func (s *soak) cycles(ctx context.Context, from, to int, deadline time.Time, v *violations) (done []*cycle) {
	var (
		wait sync.WaitGroup
		mu   sync.Mutex
		next = atomic.Int64{}
	)
	next.Store(int64(from))
	for range s.opts.parallel {
		wait.Go(func() {
			for ctx.Err() == nil {
				number := int(next.Add(1)) - 1
				late := s.opts.duration > 0 && !deadline.IsZero() && time.Now().After(deadline)
				if number >= to || late {
					return
				}
				c := newCycle(s.opts.seed, number)
				if err := s.cycle(ctx, c); err != nil {
					v.add("%v", err)
					continue
				}
				mu.Lock()
				done = append(done, c)
				mu.Unlock()
			}
		})
	}
	wait.Wait()
	return done
}

// violations are the violations found so far.
type violations struct {
	mu   sync.Mutex
	list []string
}

func (v *violations) add(format string, values ...any) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.list = append(v.list, fmt.Sprintf(format, values...))
}

// report prints the counts.
func (s *soak) report(cycles []*cycle, took time.Duration) {
	kinds, runs, codes, restarts, givenUp := map[kind]int{}, 0, 0, uint64(0), 0
	for _, c := range cycles {
		if c.givenUp() {
			givenUp++
		}
		kinds[c.kind]++
		runs += c.count("begin")
		codes += c.count("end")
		restarts += c.final.TaskStates["main"].Restarts
	}
	fmt.Printf("%d cycles in %.0f s: %d batch, %d long, %d booted\n", len(cycles), took.Seconds(), kinds[batch], kinds[long], kinds[booted])
	fmt.Printf("%d runs of payloads, %d ended by themselves, %d restarts, %d tasks given up by Nomad\n", runs, codes, restarts, givenUp)
	fmt.Printf("%d ends reported twice after a death of the agent, %d starts in place of one that it had not recorded; %d tasks with more events than Nomad keeps\n",
		s.again, s.replacements, s.forgetful)
	var names []string
	for _, strike := range strikes {
		names = append(names, fmt.Sprintf("%s %d", strike.name, s.struck[strike.name]))
	}
	slices.Sort(names)
	for _, name := range names {
		fmt.Println("  " + name)
	}
}
