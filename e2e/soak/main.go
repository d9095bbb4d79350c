// Command soak starts and stops many tasks at once on a disposable host. At the
// same time it kills the plugin, the Nomad agent, systemd-nspawn and payloads at
// random. The plugin is built with the race detector. At the end, soak checks for
//
//   - no task lost, no exit code lost, no payload run twice: each run leaves
//     marks in a host volume, which must agree with what Nomad reports;
//   - nothing left on the host: the inventory is as it was before;
//   - no more goroutines, open files and D-Bus connections of the plugin;
//   - no data race.
//
// It prints counts and each violation, and exits with 1 if there is one. It must
// be run as root from the root of the checkout. A short run, for each change:
// `go run ./e2e/soak -cycles 60 -duration 40s`.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"nomad-driver-nspawn/e2e/agent"
	"nomad-driver-nspawn/e2e/host"
)

type options struct {
	suite            string
	cycles, parallel int
	seed             uint64
	duration         time.Duration
	log              string
}

func main() {
	var opts options
	flag.StringVar(&opts.suite, "suite", host.Released[0], "Debian `release` of the host")
	flag.IntVar(&opts.cycles, "cycles", 240, "`number` of tasks to start and stop")
	flag.IntVar(&opts.parallel, "parallel", 20, "`number` of tasks at the same time")
	flag.Uint64Var(&opts.seed, "seed", rand.Uint64(), "`number` that decides about tasks and kills; random if not given")
	flag.DurationVar(&opts.duration, "duration", 0, "start no tasks after this `time`; 0: until all cycles are done")
	flag.StringVar(&opts.log, "log", "", "write the agent's log to this `file`")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	violations, err := run(ctx, opts)
	for _, v := range violations {
		fmt.Println("violation:", v)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "soak:", err)
	}
	if err != nil || len(violations) > 0 {
		os.Exit(1)
	}
}

// run soaks one host and returns what was violated.
func run(ctx context.Context, opts options) (violations []string, err error) {
	fmt.Printf("soak -suite %s -cycles %d -parallel %d -seed %d -duration %s\n",
		opts.suite, opts.cycles, opts.parallel, opts.seed, opts.duration)
	dir, err := os.MkdirTemp("", "nomad-driver-nspawn-soak-")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	plugin := filepath.Join(dir, "nomad-driver-nspawn")
	if err := build(ctx, plugin); err != nil {
		return nil, err
	}
	a, err := agent.Up(ctx, agent.Options{
		Suite: opts.suite, Plugin: plugin, Config: []string{"example/agent.hcl", "e2e/agent.hcl", "e2e/soak/agent.hcl"},
	})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, a.Host.Down()) }()
	s := &soak{agent: a, opts: opts}
	violations, err = s.run(ctx)
	if opts.log != "" {
		text, logErr := a.Log(context.WithoutCancel(ctx))
		err = errors.Join(err, logErr, os.WriteFile(opts.log, []byte(text), 0o644))
	}
	return violations, err
}

func build(ctx context.Context, path string) error {
	module, err := os.Getwd()
	if err != nil {
		return err
	}
	shim, err := host.BuildShim(ctx, filepath.Dir(path), module)
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, "go", append([]string{"build", "-race", "-o", path}, append(shim, ".")...)...)
	cmd.Stderr = os.Stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("build the plugin with the race detector: %w", err)
	}
	return nil
}
