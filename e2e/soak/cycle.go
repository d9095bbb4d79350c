package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync/atomic"
	"time"

	"github.com/hashicorp/nomad/api"

	"nomad-driver-nspawn/e2e/agent"
	"nomad-driver-nspawn/nspawn/machine"
)

// kind is the kind of task that a cycle runs.
type kind string

const (
	batch  kind = "batch"  // ends by itself
	long   kind = "long"   // is stopped and handles it
	booted kind = "booted" // boots a whole system and is stopped
)

// networks are configs of tasks. Those that have a network of their own forward a port to it.
var networks = []string{
	"network_veth = false",
	"network_veth = true\nports = [\"http\"]",
	"network_zone = \"soak\"\nports = [\"http\"]",
}

// cycle is one task from its start to its end.
type cycle struct {
	job     string
	kind    kind
	network string
	lasts   time.Duration
	code    int

	alloc string
	final *api.Allocation // as Nomad reports it at the end
	marks []string
	kills atomic.Int32 // of its own processes
}

const (
	cycleTimeout = 3 * time.Minute
	image        = "debian"
)

// newCycle returns the cycle of a number. Exit codes of payloads differ from those that a
// strike causes: 1 and 255.
func newCycle(seed uint64, number int) *cycle {
	random := rand.New(rand.NewPCG(seed, uint64(number)))
	c := &cycle{
		job:   fmt.Sprintf("soak-%d", number),
		lasts: time.Duration(random.IntN(2500)) * time.Millisecond,
		code:  random.IntN(120),
	}
	if c.code == 1 {
		c.code = 121
	}
	switch n := random.IntN(10); {
	case n < 5:
		c.kind = batch
	case n < 9:
		c.kind = long
	default:
		c.kind = booted
	}
	c.network = networks[random.IntN(len(networks))]
	return c
}

const begin = `read run </proc/sys/kernel/random/uuid
echo "begin $run" >>/shared/$NOMAD_JOB_NAME
end() { echo "end $run %d" >>/shared/$NOMAD_JOB_NAME; exit %d; }
ip route show default | grep -q . || exit 99 # no code of a cycle
`

// script returns the payload's script.
func (c *cycle) script() string {
	text := fmt.Sprintf(begin, c.code, c.code)
	if c.kind == batch {
		return text + fmt.Sprintf("sleep %.3f\nend\n", c.lasts.Seconds())
	}
	return text + "trap end TERM\nwhile true; do sleep 1000 & wait $!; done\n"
}

func (c *cycle) config() string {
	if c.kind == booted {
		return fmt.Sprintf("image = %q\n%s", image, c.network)
	}
	text := strings.ReplaceAll(c.script(), "${", "$${")
	return fmt.Sprintf("image = \"busybox\"\ncommand = \"/bin/sh\"\nargs = [\"-c\", %q]\n%s", text, c.network)
}

// hcl returns the job. A task that fails is started again once.
func (c *cycle) hcl() string {
	return fmt.Sprintf(`job %q {
  type = "batch"
  group "g" {
    restart {
      attempts = 1
      delay    = "0s"
      interval = "1h"
      mode     = "fail"
    }
    network {
      port "http" {
        to = 80
      }
    }
    reschedule {
      attempts  = 0
      unlimited = false
    }
    volume "shared" {
      type   = "host"
      source = "shared"
    }
    task "main" {
      driver       = "nspawn"
      kill_timeout = "30s"
      config {
%s
      }
      volume_mount {
        volume      = "shared"
        destination = "/shared"
      }
      resources {
        cpu    = 20
        memory = 32
      }
    }
  }
}
`, c.job, c.config())
}

func (c *cycle) machine() string { return machine.Name(c.alloc, "main") }

// cycle runs a cycle. An error means that something took too long or was refused.
func (s *soak) cycle(ctx context.Context, c *cycle) error {
	ctx, cancel := context.WithTimeout(ctx, cycleTimeout)
	defer cancel()
	if err := s.register(ctx, c); err != nil {
		return err
	}
	s.alive.Store(c.machine(), c)
	defer s.alive.Delete(c.machine())
	if c.kind != batch {
		if _, err := s.await(ctx, c, "running", running); err != nil {
			return err
		}
		select {
		case <-time.After(c.lasts): // no event ends its life
		case <-ctx.Done():
		}
		if err := s.deregister(ctx, c); err != nil {
			return err
		}
	}
	var err error
	if c.final, err = s.await(ctx, c, "ended", ended); err != nil {
		return err
	}
	if err := s.deregister(ctx, c); err != nil {
		return err
	}
	if err := s.remove(ctx, c); err != nil {
		return err
	}
	return s.readMarks(c)
}

func running(now *api.Allocation) bool {
	return now.ClientStatus == api.AllocClientStatusRunning || ended(now)
}

func ended(now *api.Allocation) bool {
	switch now.ClientStatus {
	case api.AllocClientStatusComplete, api.AllocClientStatusFailed, api.AllocClientStatusLost:
		return true
	}
	return false
}

func (s *soak) readMarks(c *cycle) error {
	path := filepath.Join(s.agent.Host.Root(), agent.Shared, c.job)
	text, err := os.ReadFile(path)
	if err != nil && !os.IsNotExist(err) {
		return fmt.Errorf("read marks of job %s: %w", c.job, err)
	}
	c.marks = strings.Split(strings.TrimSpace(string(text)), "\n")
	return nil
}

// register runs the job and finds its allocation.
func (s *soak) register(ctx context.Context, c *cycle) error {
	err := s.try(ctx, func() error {
		job, err := s.agent.API.Jobs().ParseHCL(c.hcl(), true)
		if err != nil {
			return err
		}
		_, _, err = s.agent.API.Jobs().Register(job, (&api.WriteOptions{}).WithContext(ctx))
		return err
	})
	if err != nil {
		return fmt.Errorf("register job %s: %w", c.job, err)
	}
	var index uint64
	for c.alloc == "" {
		err := s.try(ctx, func() error {
			list, meta, err := s.agent.API.Jobs().Allocations(c.job, true, blocking(ctx, index))
			if err == nil && len(list) > 0 {
				c.alloc = list[0].ID
			}
			if err == nil {
				index = max(meta.LastIndex, 1)
			}
			return err
		})
		if err != nil {
			return fmt.Errorf("wait for an allocation of job %s: %w", c.job, err)
		}
	}
	return nil
}

func blocking(ctx context.Context, index uint64) *api.QueryOptions {
	return (&api.QueryOptions{WaitIndex: index, WaitTime: time.Minute}).WithContext(ctx)
}

// await waits until the allocation fulfills a condition.
func (s *soak) await(ctx context.Context, c *cycle, what string, until func(*api.Allocation) bool) (now *api.Allocation, err error) {
	var index uint64
	for now == nil || !until(now) {
		err := s.try(ctx, func() error {
			next, meta, err := s.agent.API.Allocations().Info(c.alloc, blocking(ctx, index))
			if err == nil {
				now, index = next, max(meta.LastIndex, 1)
			}
			return err
		})
		if err != nil {
			return nil, fmt.Errorf("wait for %s task of job %s, allocation %s, to be %s: %w; its events:\n%s",
				c.kind, c.job, c.alloc, what, err, agent.Events(now))
		}
	}
	return now, nil
}

func (s *soak) deregister(ctx context.Context, c *cycle) error {
	err := s.try(ctx, func() error {
		_, _, err := s.agent.API.Jobs().Deregister(c.job, false, (&api.WriteOptions{}).WithContext(ctx))
		return err
	})
	if err != nil {
		return fmt.Errorf("stop job %s: %w", c.job, err)
	}
	return nil
}

var unknown = regexp.MustCompile("No such allocation|Unknown allocation")

// remove makes the node forget the allocation, and waits until it has. A node whose agent
// was killed may have forgotten it already.
func (s *soak) remove(ctx context.Context, c *cycle) error {
	err := s.try(ctx, func() error {
		answer, err := s.agent.API.Raw().Response("/v1/client/allocation/"+c.alloc+"/gc", blocking(ctx, 0))
		if err != nil && unknown.MatchString(err.Error()) {
			return nil
		}
		if err != nil {
			return err
		}
		return answer.Close()
	})
	if err != nil {
		return fmt.Errorf("remove allocation %s from its node: %w", c.alloc, err)
	}
	return nil
}
