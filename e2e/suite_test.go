//go:build e2e

// Package e2e tests the built plugin against a real Nomad agent, on disposable
// hosts with the systemd of each supported Debian release.
package e2e

import (
	"context"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"nomad-driver-nspawn/e2e/agent"
	"nomad-driver-nspawn/e2e/host"
)

func TestMain(m *testing.M) {
	flag.Parse()
	if os.Getuid() != 0 {
		os.Stderr.WriteString("e2e: the tests boot hosts and must be run as root: run `make e2e`, or this with sudo\n")
		os.Exit(1)
	}
	// Tests wait more than they compute.
	if parallel := flag.Lookup("test.parallel"); parallel.Value.String() == parallel.DefValue {
		_ = parallel.Value.Set("8")
	}
	os.Exit(m.Run())
}

const (
	// bootTimeout includes the time to make images and Nomad, if they are not cached.
	bootTimeout = 15 * time.Minute
	testTimeout = 2 * time.Minute
)

// test is a test of one behavior, on a host that it shares with other tests.
type test struct {
	name string
	run  func(*lab)
}

// together lists the tests that may run at the same time.
var together = [][]test{exampleTests, runTests, environmentTests, fileTests, networkTests, caseTests, reportTests, bootTests, imageTests, refusedTests, optionTests, deviceTests}

// alone lists the tests that break or restart what others need.
var alone = [][]test{recoveryTests, brokenHostTests}

// TestE2E runs all tests on a host of each chosen suite.
func TestE2E(t *testing.T) {
	for _, suite := range host.Chosen() {
		t.Run(suite, testSuite)
	}
}

func testSuite(t *testing.T) {
	t.Parallel()
	suite := t.Name()[strings.LastIndex(t.Name(), "/")+1:]
	a := up(t, suite)
	warmUp(t, a)
	before := inventory(t, a)
	t.Run("together", func(t *testing.T) {
		for _, group := range together {
			for _, test := range group {
				t.Run(test.name, func(t *testing.T) {
					t.Parallel()
					test.run(newLab(t, a))
				})
			}
		}
	})
	for _, group := range alone {
		for _, test := range group {
			t.Run(test.name, func(t *testing.T) {
				l := newLab(t, a)
				_, err := a.AwaitDriver(l.ctx, true) // the test before may have killed the plugin
				must.NoError(t, err)
				test.run(l)
			})
		}
	}
	t.Run("nothing is left", func(t *testing.T) { awaitInventory(t, a, before) })
	t.Run("the agent's log is quiet", func(t *testing.T) { testQuietLog(newLab(t, a)) })
}

// warmUp makes what is made once and kept, such as Nomad's bridge.
func warmUp(t *testing.T, a *agent.Agent) {
	ctx, cancel := context.WithTimeout(t.Context(), testTimeout)
	defer cancel()
	text, err := os.ReadFile("../example/bridge/job.nomad.hcl")
	must.NoError(t, err)
	allocs, err := a.Run(ctx, string(text))
	must.NoError(t, err)
	must.NoError(t, allocs[0].Running(ctx))
	must.NoError(t, allocs[0].Remove(ctx))
}

func up(t *testing.T, suite string) *agent.Agent {
	return upWith(t, agent.Options{
		Suite:   suite,
		Plugin:  "../build/nomad-driver-nspawn",
		Config:  []string{"../example/agent.hcl", "agent.hcl", "device/agent.hcl"},
		Devices: []string{devicePlugin(t)},
	})
}

// devicePlugin builds the device plugin and returns its path.
func devicePlugin(t *testing.T) string {
	path := filepath.Join(t.TempDir(), "e2e-device")
	cmd := exec.CommandContext(t.Context(), "go", "build", "-o", path, "./device")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	out, err := cmd.CombinedOutput()
	must.NoError(t, err, must.Sprintf("%s", out))
	return path
}

// upWith boots a host with an agent, and takes both down at the end of the test.
func upWith(t *testing.T, opts agent.Options) *agent.Agent {
	ctx, cancel := context.WithTimeout(t.Context(), bootTimeout)
	defer cancel()
	a, err := agent.Up(ctx, opts)
	must.NoError(t, err)
	t.Cleanup(func() {
		if t.Failed() {
			ctx, cancel := context.WithTimeout(context.Background(), testTimeout)
			defer cancel()
			t.Logf("the agent's log ends with:\n%s", a.Journal(ctx, "nomad.service", 20))
		}
		must.NoError(t, a.Host.Down())
	})
	return a
}
