package enter

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"
)

// hold limits what must take no time even though a container tries to delay it.
const hold = 15 * time.Second

// within fails the test if f takes longer than hold.
func within(t testing.TB, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		f()
	}()
	select {
	case <-done:
	case <-time.After(hold):
		t.Fatalf("still not done after %s", hold)
	}
}

// TestHostFrozen lets containers freeze everything that they can. If a thread of ours
// waited in vfork(2) for a frozen child, the garbage collection would wait for it, and
// with it the whole plugin.
func TestHostFrozen(t *testing.T) {
	neighbour := startMachine(t, setup{mode: asPID2, private: true})
	for name, freeze := range map[string]string{
		"groups that commands might get": `mkdir /sys/fs/cgroup/exec.scope && echo 1 >/sys/fs/cgroup/exec.scope/cgroup.freeze`,
		// The container freezes itself, including its leader.
		"itself": `
			cd /sys/fs/cgroup; mkdir x; echo 1 >x/cgroup.freeze
			for pid in $(cat cgroup.procs); do [ $pid = $$ ] || echo $pid >x/cgroup.procs; done; true`,
	} {
		t.Run(name, func(t *testing.T) {
			m := startMachine(t, setup{mode: asPID2, private: true})
			m.sh(t, freeze)
			m.target.Cgroup = cgroupOf(t, m.target.Leader)
			before := members(t, m)
			for n := range 4 {
				within(t, func() {
					ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
					defer cancel()
					code, err := Run(ctx, m.target, Command{TTY: n%2 == 0, Argv: []string{"true"}})
					t.Log("exit code", code, err)
				})
				within(t, runtime.GC)
				within(t, func() { must.EqOp(t, "neighbour", neighbour.sh(t, "echo neighbour")) })
			}
			waitFor(t, func() bool { return len(members(t, m)) == len(before) })
			must.EqOp(t, "", zombies(t))
		})
	}
}

// TestHostFrozenPlace freezes the container's cgroup from outside: the shim is stopped as
// soon as it enters the cgroup, and ends when its time is over.
func TestHostFrozenPlace(t *testing.T) {
	m := startMachine(t, setup{mode: asPID2, private: true})
	freeze := filepath.Join(m.target.Delegated, "cgroup.freeze")
	must.NoError(t, os.WriteFile(freeze, []byte("1"), 0))
	for range 3 {
		within(t, func() {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			_, err := Run(ctx, m.target, Command{Argv: []string{"true"}})
			must.ErrorIs(t, err, context.DeadlineExceeded)
		})
		within(t, runtime.GC)
	}
	must.EqOp(t, "", zombies(t))
	must.SliceEmpty(t, m.groups(t))
	must.NoError(t, os.WriteFile(freeze, []byte("0"), 0))
	must.EqOp(t, ended{}, m.do(t, Command{Argv: []string{"true"}}))
}

// TestHostTimeLimit runs commands that move their processes out of reach of signals to
// their session. None of them may remain when the command's time is over.
func TestHostTimeLimit(t *testing.T) {
	m := startMachine(t, setup{mode: asPID2, private: true})
	sleeps := func() (n int) {
		for line := range strings.Lines(m.processes(t)) {
			if strings.HasPrefix(line, "sleep 60") {
				n++
			}
		}
		return n
	}
	for _, tty := range []bool{false, true} {
		s := m.session(t, Command{TTY: tty, Argv: []string{"sh", "-c", `
			trap "" TERM INT HUP; setsid sh -c 'trap "" TERM INT HUP; setsid sleep 601 & sleep 602' & setsid sleep 603 & echo ready; sleep 604`}})
		s.expect(t, "ready")
		waitFor(t, func() bool { return sleeps() == 4 })
		s.cancel()
		must.EqOp(t, 137, s.ended(t))
		waitFor(t, func() bool { return sleeps() == 0 })
	}
	waitFor(t, func() bool {
		m.do(t, Command{Argv: []string{"true"}}) // this removes the leftovers of the groups
		return len(m.groups(t)) == 0
	})
}

// TestHostTraced runs a process that traces a command and never releases it, not even
// when it is dead, so that its parent cannot reap it.
func TestHostTraced(t *testing.T) {
	m := startMachine(t, setup{mode: asPID2, private: true})
	neighbour := startMachine(t, setup{mode: asPID2, private: true})
	ctx, cancel := context.WithCancel(t.Context())
	var output transcript
	result := make(chan error, 1)
	go func() {
		_, err := Run(ctx, m.target, Command{Argv: []string{"sh", "-c", "echo ready; sleep 1000; true"}, Stdout: &output})
		result <- err
	}()
	waitFor(t, func() bool { return output.String() == "ready\n" })
	tracer := exec.Command(os.Args[0], traceArg, victim(t, m, "echo ready"))
	out, err := tracer.StdoutPipe()
	must.NoError(t, err)
	must.NoError(t, tracer.Start())
	t.Cleanup(func() { _ = tracer.Process.Kill(); _ = tracer.Wait() })
	line := make([]byte, 8)
	_, err = out.Read(line)
	must.NoError(t, err)
	cancel()
	within(t, func() { must.ErrorContains(t, <-result, "its tracer does not release it") })
	within(t, func() { must.EqOp(t, "neighbour", neighbour.sh(t, "echo neighbour")) })
	must.NotEq(t, "", zombies(t))
	must.NoError(t, tracer.Process.Kill())
	_ = tracer.Wait()
	waitFor(t, func() bool { return zombies(t) == "" })
}

// victim returns the PID of the member with the text in its command line.
func victim(t testing.TB, m *machine, text string) string {
	t.Helper()
	for _, pid := range members(t, m) {
		if line, _ := os.ReadFile("/proc/" + pid + "/cmdline"); strings.Contains(string(line), text) {
			return pid
		}
	}
	t.Fatalf("no process with %q", text)
	return ""
}

// traceArg makes the test program a tracer that never waits.
const traceArg = "trace-and-hang"

func traceMain(pid string) {
	runtime.LockOSThread()
	victim, err := strconv.Atoi(pid)
	if err == nil {
		err = unix.PtraceSeize(victim)
	}
	if err != nil {
		panic(err)
	}
	os.Stdout.WriteString("traced\n")
	time.Sleep(time.Hour)
}

// TestHostSession checks that the process is never in our session, whose terminal it
// could open as /dev/tty.
func TestHostSession(t *testing.T) {
	m := startMachine(t, setup{mode: asPID2, private: true})
	e := m.do(t, Command{Argv: []string{"sh", "-c", "cut -d' ' -f6 /proc/self/stat; exec </dev/tty"}})
	must.StrNotContains(t, e.stdout, "0\n")
	must.StrContains(t, e.stderr, "/dev/tty")
}
