package nspawn

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"

	"nomad-driver-nspawn/e2e/host/hosttest"
	"nomad-driver-nspawn/nspawn/cgroup"
	"nomad-driver-nspawn/nspawn/enter"
	"nomad-driver-nspawn/nspawn/machine"
)

// TestHostGroupLimits runs a container that creates control groups without end, nested
// deeper than a path can be long.
func TestHostGroupLimits(t *testing.T) {
	m := newManager(t)
	spec := newMachine(t, m, "sleep 1000")
	mustStart(t, m, spec)
	var out bytes.Buffer
	_, err := m.Exec(t.Context(), spec.Machine, enter.Command{Stdout: &out, Argv: []string{"/bin/sh", "-c", `
		cd /sys/fs/cgroup; n=0; while mkdir w$n 2>/dev/null; do n=$((n+1)); [ $n -lt 3000 ] || break; done; echo wide $n
		rmdir w*
		name=$(printf %0200d 0); n=0; while mkdir $name 2>/dev/null && cd $name; do n=$((n+1)); [ $n -lt 60 ] || break; done; echo deep $n`}})
	must.NoError(t, err)
	t.Log(out.String())
	var wide, deep int
	_, err = fmt.Sscanf(out.String(), "wide %d\ndeep %d\n", &wide, &deep)
	must.NoError(t, err)
	must.Between(t, 1, wide, cgroup.MaxGroups)
	must.Between(t, 1, deep, cgroup.MaxDepth)
}

// newInit returns a busybox machine that is booted with the script as PID 1.
func newInit(t *testing.T, m *Manager, script string) machine.Spec {
	spec := newMachine(t, m, "")
	image := filepath.Join("/var/lib/machines", "init-"+spec.Machine)
	run(t, "cp", "-a", hosttest.Busybox, image)
	t.Cleanup(func() { must.NoError(t, os.RemoveAll(image)) })
	must.NoError(t, os.MkdirAll(filepath.Join(image, "sbin"), 0o755))
	path := filepath.Join(image, "sbin/init")
	_ = os.Remove(path) // it is a link to busybox
	must.NoError(t, os.WriteFile(path, []byte("#!/bin/sh\n"+script), 0o755))
	spec.Mode, spec.Command, spec.Root.Image = machine.Boot, nil, image
	return spec
}

// TestHostRebootStorm runs a guest that reboots all the time. It must fail after some
// reboots, and its groups must be limited after each of them.
func TestHostRebootStorm(t *testing.T) {
	m := newManager(t)
	spec := newInit(t, m, "exec reboot -f")
	out := mustStart(t, m, spec)
	reboots := 0
	for event := range out.events {
		switch event.Kind {
		case Rebooted:
			reboots++
		case Ended:
			must.True(t, event.Exit.Reboots, must.Sprintf("%+v", event))
		}
	}
	must.Between(t, 1, reboots, machine.MaxReboots)
}

// hostile returns containers that hold up everything that waits for them.
func hostile(t *testing.T, m *Manager) map[string]machine.Spec {
	self := "cd /sys/fs/cgroup; mkdir x; for p in $(cat cgroup.procs); do echo $p >x/cgroup.procs; done; "
	specs := map[string]machine.Spec{
		"frozen":        newMachine(t, m, self+"echo 1 >x/cgroup.freeze; sleep 1000"),
		"frozen place":  newMachine(t, m, "mkdir /sys/fs/cgroup/exec.scope; echo 1 >/sys/fs/cgroup/exec.scope/cgroup.freeze; sleep 1000"),
		"stopped":       newMachine(t, m, "kill -STOP $$; sleep 1000"),
		"deaf":          newMachine(t, m, "trap '' TERM INT HUP; while :; do sleep 1000; done"),
		"passwd a fifo": newMachine(t, m, "rm /etc/passwd; mkfifo /etc/passwd; sleep 1000"),
		"groups":        newMachine(t, m, "cd /sys/fs/cgroup; while :; do mkdir $(seq 1 3000) 2>/dev/null; rmdir $(seq 1 3000) 2>/dev/null; done"),
		"processes":     newMachine(t, m, "for i in $(seq 400); do sleep 1000 & done; while :; do sleep 0.01; done"),
		"reboots":       newInit(t, m, "exec reboot -f"),
		"output":        newMachine(t, m, "yes; sleep 1000"),
	}
	ready := newMachine(t, m, "while :; do printf READY=1 | socat - UNIX-SENDTO:$NOTIFY_SOCKET || sleep 0.01; done")
	ready.NotifyReady = true
	specs["ready"] = ready
	return specs
}

// TestHostWatchdog goes through the life of a task again and again, beside 20 hostile
// containers in which commands are run, whose usage is read, and which are stopped.
func TestHostWatchdog(t *testing.T) {
	m := newManager(t)
	ctx, cancel := context.WithCancel(t.Context())
	var machines []machine.Spec
	for range 2 {
		for name, spec := range hostile(t, m) {
			out, err := start(t, m, spec)
			t.Log(name, spec.Machine, err)
			if err != nil {
				continue
			}
			go func() {
				for range out.events {
				}
			}()
			machines = append(machines, spec)
			go bother(ctx, m, spec)
		}
	}
	must.GreaterEq(t, 16, len(machines))
	for range 5 {
		begin := time.Now()
		live(t, m)
		t.Log("a life took", time.Since(begin))
	}
	cancel()
	for _, spec := range machines {
		begin := time.Now()
		must.NoError(t, m.Stop(t.Context(), spec.Machine, spec.Mode, unix.SIGTERM, time.Second, told(t)), must.Sprint(spec.Machine))
		// Stop waits for the payload, for nspawn and for the whole unit in turn.
		must.Less(t, time.Second+2*killTimeout+patience, time.Since(begin), must.Sprint(spec.Machine))
	}
}

// bother does everything that a plugin does to a machine, until ctx is done.
func bother(ctx context.Context, m *Manager, spec machine.Spec) {
	for ctx.Err() == nil {
		limit, cancel := context.WithTimeout(ctx, 2*time.Second)
		_, _ = m.Exec(limit, spec.Machine, enter.Command{Argv: []string{"true"}})
		_, _ = m.Usage(spec.Machine)
		_ = m.Signal(limit, spec.Machine, spec.Mode, unix.SIGCONT)
		_, _ = m.Status(limit, spec.Machine)
		<-limit.Done()
		cancel()
	}
}

// patience limits each step on a host that is busy with 20 machines.
const patience = 20 * time.Second

// live starts, enters, reads, signals and stops a machine.
func live(t *testing.T, m *Manager) {
	t.Helper()
	step := func(name string, f func()) {
		t.Helper()
		done := make(chan struct{})
		go func() {
			defer close(done)
			f()
		}()
		select {
		case <-done:
		case <-time.After(patience):
			t.Fatalf("%s takes longer than %s", name, patience)
		}
	}
	spec := newMachine(t, m, "trap 'exit 5' TERM; while :; do sleep 1000 & wait $!; done")
	var out output
	step("start", func() { out = mustStart(t, m, spec) })
	step("wait for the trap", func() { awaitTrap(t, m, spec) })
	step("exec", func() {
		code, err := m.Exec(t.Context(), spec.Machine, enter.Command{Argv: []string{"/bin/sh", "-c", "exit 3"}})
		must.NoError(t, err)
		must.EqOp(t, 3, code)
	})
	step("garbage collection", runtime.GC)
	step("usage", func() {
		_, err := m.Usage(spec.Machine)
		must.NoError(t, err)
	})
	step("stop", func() {
		must.NoError(t, m.Stop(t.Context(), spec.Machine, spec.Mode, unix.SIGTERM, time.Minute, told(t)))
	})
	step("events", func() {
		for event := range out.events {
			if event.Kind == Ended {
				must.Eq(t, Exit{Code: 5}, event.Exit)
			}
		}
	})
	step("remove", func() { must.NoError(t, m.Remove(t.Context(), spec.Machine)) })
}

func run(t testing.TB, name string, args ...string) {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	must.NoError(t, err, must.Sprint(string(out)))
}
