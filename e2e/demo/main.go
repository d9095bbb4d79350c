// Command demo shows the driver at work: `go run ./e2e/demo up` boots a
// disposable host, runs Nomad and the jobs of example/ on it, and shows them.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"nomad-driver-nspawn/e2e/agent"
	"nomad-driver-nspawn/e2e/host"
)

const (
	name    = "demo"
	plugin  = "build/nomad-driver-nspawn"
	timeout = 15 * time.Minute // the first time, images and Nomad are made
)

func main() {
	if len(os.Args) != 2 || os.Args[1] != "up" {
		fmt.Fprintln(os.Stderr, "usage: demo up (from the root of the checkout; see `make help`)")
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	if err := up(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

// up leaves the host running even if a job fails, so that the user can inspect it.
func up(ctx context.Context) error {
	progress("looking for the images and Nomad (some minutes the first time, they are cached)…")
	if err := prepare(ctx); err != nil {
		return err
	}
	progress("booting the host and starting Nomad (about 10 seconds)…")
	a, err := agent.Up(ctx, agent.Options{Name: name, Plugin: plugin, Config: []string{"example/agent.hcl"}})
	if err != nil {
		return err
	}
	if err := a.Host.Detach(); err != nil {
		return err
	}
	progress("running the jobs of example/ (about 15 seconds, of which Nomad waits 10 to call them healthy)…")
	jobs, err := runJobs(ctx, a)
	if err != nil {
		return err
	}
	d := &display{ctx: ctx, agent: a}
	d.show(jobs)
	return d.err
}

// prepare makes what is missing and removes the host of an earlier demo.
func prepare(ctx context.Context) error {
	makers := []func(context.Context) (string, error){host.BusyboxImage, host.DebianImage, host.NomadBinary}
	for _, make := range makers {
		if _, err := make(ctx); err != nil {
			return err
		}
	}
	hosts, err := host.List()
	for _, h := range hosts {
		if h.Name() == name {
			progress("removing the host of the last demo…")
			return h.Down()
		}
	}
	return err
}

// example is a job of example/ and the condition to wait for.
type example struct {
	name  string
	await func(*agent.Alloc, context.Context) error
}

var examples = [...]example{
	{"batch", func(al *agent.Alloc, ctx context.Context) error { _, err := al.Ended(ctx); return err }},
	{"boot", (*agent.Alloc).Healthy},
	{"bridge", (*agent.Alloc).Healthy},
}

// runJobs runs all jobs concurrently and returns their allocations by name of the example.
func runJobs(ctx context.Context, a *agent.Agent) (map[string]*agent.Alloc, error) {
	var (
		wait   sync.WaitGroup
		errs   [len(examples)]error
		allocs [len(examples)]*agent.Alloc
	)
	for i, e := range examples {
		wait.Go(func() {
			allocs[i], errs[i] = runJob(ctx, a, e)
			if errs[i] != nil {
				errs[i] = fmt.Errorf("example %s: %w", e.name, errs[i])
				return
			}
			progress("  %s is ready", e.name)
		})
	}
	wait.Wait()
	jobs := map[string]*agent.Alloc{}
	for i, e := range examples {
		jobs[e.name] = allocs[i]
	}
	return jobs, errors.Join(errs[:]...)
}

func runJob(ctx context.Context, a *agent.Agent, e example) (*agent.Alloc, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	text, err := os.ReadFile(filepath.Join("example", e.name, "job.nomad.hcl"))
	if err != nil {
		return nil, err
	}
	allocs, err := a.Run(ctx, string(text))
	if err != nil {
		return nil, err
	}
	if err := e.await(allocs[0], ctx); err != nil {
		journal := a.Journal(context.WithoutCancel(ctx), "nomad-nspawn-*"+allocs[0].ID+".service", 20)
		return nil, fmt.Errorf("%w\nits unit's journal ends with:\n%s", err, journal)
	}
	return allocs[0], nil
}

func progress(format string, args ...any) {
	fmt.Fprintf(os.Stderr, format+"\n", args...)
}
