//go:build e2e

package e2e

import (
	"context"
	"fmt"
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

// oldVersion is the last version that starts machines without the gate and without
// networks of the driver.
const oldVersion = "fdf5d8be"

// upgradeTimeout is the limit for the tasks of both versions together.
const upgradeTimeout = 5 * time.Minute

// TestUpgrade checks that today's plugin takes over the tasks that the plugin of
// oldVersion has started.
func TestUpgrade(t *testing.T) {
	t.Parallel()
	suites := host.Chosen()
	old := checkOut(t)
	a := upWith(t, agent.Options{
		Suite:  suites[len(suites)-1],
		Plugin: filepath.Join(old, "build/nomad-driver-nspawn"),
		Config: []string{filepath.Join(old, "example/agent.hcl"), filepath.Join(old, "e2e/agent.hcl")},
	})
	l := newLabFor(t, a, upgradeTimeout)

	booted := l.booted()
	web := l.start(job{kind: service, group: httpPort, tasks: []task{{config: forwardHTTP, script: webServer + loop}}})
	must.NoError(l, web.Running(l.ctx))
	l.waitLog(web, agent.Stdout, "ready\n")
	one := l.ready(task{config: "process_two = false", script: "trap 'exit 8' TERM\n" + loop})
	ended := l.start(job{tasks: []task{{script: waiter}}})
	l.waitLog(ended, agent.Stdout, "ready\n")
	testRecovery(l, func(ctx context.Context) error { return l.upgrade(ended) })

	must.Eq(l, "the new one\n", l.onHost("sh", "-c", "cmp -s /proc/$(pgrep --full --exact "+agent.Plugin+")/exe /srv/new/nomad-driver-nspawn && echo the new one"))
	end := l.ended(ended)
	must.Eq(l, 7, l.exitCode(end))
	must.Eq(l, "blue\n", l.exec(booted, "sh", "-c", "echo $COLOR"))
	url := fmt.Sprintf("http://%s:%d/", a.Host.Addr(), l.port(web))
	must.Eq(l, web.ID+"\n", l.onHost("curl", "--silent", "--show-error", "--max-time", "10", url))
	now, err := booted.Stop(l.ctx)
	must.NoError(l, err)
	must.Zero(l, l.exitCode(now), must.Sprint(agent.Events(now)))
	now, err = one.Stop(l.ctx)
	must.NoError(l, err)
	must.Eq(l, 8, l.exitCode(now), must.Sprint(agent.Events(now)))
	_, err = web.Stop(l.ctx)
	must.NoError(l, err)
	for _, al := range []*agent.Alloc{booted, web, one, ended} {
		l.gone(al)
	}
}

// checkOut builds the old version and returns its directory.
func checkOut(t *testing.T) string {
	git := func(args ...string) string {
		out, err := exec.CommandContext(t.Context(), "git", append([]string{"-C", ".."}, args...)...).Output()
		must.NoError(t, err, must.Sprintf("git %s", args))
		return strings.TrimSpace(string(out))
	}
	if git("rev-parse", "--is-shallow-repository") == "true" {
		t.Skipf("this clone has no history with version %s: git fetch --unshallow", oldVersion)
	}
	dir := t.TempDir()
	archive := filepath.Join(dir, "archive.tar")
	git("archive", "--output="+archive, oldVersion)
	for _, argv := range [][]string{{"tar", "-xf", archive}, {"make", "build"}} {
		cmd := exec.CommandContext(t.Context(), argv[0], argv[1:]...)
		cmd.Dir = dir
		out, err := cmd.CombinedOutput()
		must.NoError(t, err, must.Sprintf("%s: %s", argv, out))
	}
	return dir
}

// upgrade replaces the old plugin and its configuration by today's. Between the two, a
// task ends.
func (l *lab) upgrade(ends *agent.Alloc) error {
	if err := l.endsWithoutAgent(ends); err != nil {
		return err
	}
	for path, from := range map[string]string{
		"/srv/new/nomad-driver-nspawn": "../build/nomad-driver-nspawn",
		"/etc/nomad.d/0-agent.hcl":     "../example/agent.hcl",
		"/etc/nomad.d/1-agent.hcl":     "agent.hcl",
	} {
		text, err := os.ReadFile(from)
		if err != nil {
			return err
		}
		if err := l.agent.WriteFile(path, string(text)); err != nil {
			return err
		}
	}
	l.onHost("chmod", "755", "/srv/new/nomad-driver-nspawn")
	l.onHost("mount", "--bind", "/srv/new/nomad-driver-nspawn", agent.Plugin)
	return l.agent.Start(l.ctx)
}
