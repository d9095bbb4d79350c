package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"nomad-driver-nspawn/e2e/soak/hostproc"
)

// strike is one way to do harm.
type strike struct {
	name   string
	weight int
	rests  bool
	do     func(*soak, context.Context, *rand.Rand) error
}

// strikes are all ways to do harm. A strike at machines hits a random one.
var strikes = [...]strike{
	{"plugin killed", 3, true, (*soak).killPlugin},
	{"plugin stopped", 1, false, (*soak).pausePlugin},
	{"agent killed", 3, true, (*soak).killAgent},
	{"nspawn killed", 3, false, kills(hostproc.Nspawn)},
	{"leader killed", 3, false, kills(hostproc.Leader)},
	{"payload killed", 3, false, kills(hostproc.Payload)},
}

// The pauses between strikes, and after a strike that kills the plugin: Nomad tries to
// recover a task only once.
const (
	minPause = 500 * time.Millisecond
	maxPause = 2 * time.Second
	rest     = 8 * time.Second
)

// chaos strikes until ctx is done.
func (s *soak) chaos(ctx context.Context) error {
	random := rand.New(rand.NewPCG(s.opts.seed, 1<<63))
	var rested time.Time
	for {
		select {
		case <-time.After(minPause + time.Duration(random.Int64N(int64(maxPause-minPause)))):
		case <-ctx.Done():
			return nil
		}
		strike := pick(random)
		if strike.rests && time.Now().Before(rested) {
			continue
		}
		err := strike.do(s, ctx, random)
		switch {
		case errors.Is(err, errMissed) || errors.Is(err, os.ErrProcessDone):
		case err != nil && ctx.Err() == nil:
			return fmt.Errorf("strike %q: %w", strike.name, err)
		case err == nil:
			s.struck[strike.name]++
			if strike.rests {
				rested = time.Now().Add(rest)
			}
		}
	}
}

func pick(random *rand.Rand) strike {
	total := 0
	for _, s := range strikes {
		total += s.weight
	}
	n := random.IntN(total)
	for _, s := range strikes {
		if n -= s.weight; n < 0 {
			return s
		}
	}
	panic("unreachable")
}

// errMissed means that there was nothing to hit.
var errMissed = errors.New("nothing to hit")

// kills returns a strike that kills a process of a random machine.
func kills(kind func(machine string) hostproc.Kind) func(*soak, context.Context, *rand.Rand) error {
	return func(s *soak, _ context.Context, random *rand.Rand) error {
		var all []*cycle
		s.alive.Range(func(_, c any) bool {
			all = append(all, c.(*cycle))
			return true
		})
		slices.SortFunc(all, func(a, b *cycle) int { return strings.Compare(a.job, b.job) })
		random.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
		for _, c := range all {
			p, err := hostproc.One(s.agent.Host, kind(c.machine()))
			if err != nil {
				continue // it is starting or has ended
			}
			c.kills.Add(1) // before its end is noticed
			return p.Signal(unix.SIGKILL)
		}
		return errMissed
	}
}

func (s *soak) killPlugin(context.Context, *rand.Rand) error {
	p, err := hostproc.One(s.agent.Host, hostproc.Plugin)
	if err != nil {
		return errMissed
	}
	return p.Signal(unix.SIGKILL)
}

func (s *soak) pausePlugin(ctx context.Context, random *rand.Rand) error {
	p, err := hostproc.One(s.agent.Host, hostproc.Plugin)
	if err != nil {
		return errMissed
	}
	if err := p.Signal(unix.SIGSTOP); err != nil {
		return err
	}
	select {
	case <-time.After(time.Duration(random.IntN(3000)) * time.Millisecond):
	case <-ctx.Done():
	}
	return p.Signal(unix.SIGCONT)
}

// killAgent kills the agent and starts it again. In the meantime, its callers wait in try.
func (s *soak) killAgent(ctx context.Context, _ *rand.Rand) error {
	ctx = context.WithoutCancel(ctx) // leave it running
	s.up.Lock()
	defer s.up.Unlock()
	s.kills.Add(1)
	defer s.kills.Add(1)
	p, err := hostproc.One(s.agent.Host, hostproc.Agent)
	if err != nil {
		return err
	}
	s.agentKills = append(s.agentKills, time.Now())
	if err := p.Signal(unix.SIGKILL); err != nil {
		return err
	}
	if err := s.agent.Stop(ctx); err != nil { // returns when systemd has noticed the end
		return err
	}
	return s.agent.Start(ctx)
}

// try calls the agent, and repeats the call if the agent was killed during it.
func (s *soak) try(ctx context.Context, ask func() error) error {
	for {
		before := s.kills.Load()
		err := ask()
		if err == nil || ctx.Err() != nil || s.kills.Load() == before && before%2 == 0 {
			return err
		}
		s.awaitUp()
	}
}

// awaitUp returns when the agent is up again.
func (s *soak) awaitUp() {
	s.up.RLock()
	defer s.up.RUnlock()
}
