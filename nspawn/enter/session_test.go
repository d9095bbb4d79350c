package enter

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/shoenig/test/must"
)

// patience is for events that take a moment on an idle machine. The faults that it must
// detect take 90 s or longer: a guest's shutdown that waits for a process that it cannot
// end, or the sleep of a command.
const patience = 30 * time.Second

// waitFor checks a condition every 5 ms that no event reports.
func waitFor(t testing.TB, condition func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !condition(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("condition not met within %s", patience)
		}
	}
}

// transcript collects the output of a session, so that a test can wait for parts of it.
type transcript struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (s *transcript) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.buf.Write(p)
}

func (s *transcript) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.buf.String()
}

// session is a command that runs in the background of a test.
type session struct {
	output transcript
	input  *io.PipeWriter
	resize chan Size
	cancel context.CancelFunc
	code   chan int
}

func (m *machine) session(t testing.TB, c Command) *session {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	input, feed := io.Pipe()
	s := &session{input: feed, resize: make(chan Size, 2), cancel: cancel, code: make(chan int, 1)}
	t.Cleanup(func() { cancel(); feed.Close() })
	c.Stdin, c.Stdout, c.Stderr, c.Resize = input, &s.output, &s.output, s.resize
	go func() {
		code, err := Run(ctx, m.target, c)
		if err != nil {
			t.Error(err)
		}
		s.code <- code
	}()
	return s
}

func (s *session) expect(t testing.TB, text string) {
	t.Helper()
	defer func() {
		if t.Failed() {
			t.Logf("output so far: %q", s.output.String())
		}
	}()
	waitFor(t, func() bool { return strings.Contains(s.output.String(), text) })
}

func (s *session) ended(t testing.TB) int {
	t.Helper()
	select {
	case code := <-s.code:
		return code
	case <-time.After(patience):
		t.Fatalf("still runs after %s; output so far: %q", patience, s.output.String())
		return -1
	}
}

func (s *session) say(t testing.TB, text string) {
	t.Helper()
	_, err := io.WriteString(s.input, text)
	must.NoError(t, err)
}

func TestHostTerminal(t *testing.T) {
	for name, s := range map[string]setup{
		"plain":   {mode: asPID2},
		"private": {mode: asPID2, private: true},
		"boot":    {mode: boot, private: true},
	} {
		t.Run(name, func(t *testing.T) {
			m := startMachine(t, s)
			for _, user := range []string{"", "1000"} {
				checkTerminal(t, m, user)
			}
		})
	}
}

func checkTerminal(t *testing.T, m *machine, user string) {
	t.Helper()
	s := m.session(t, Command{TTY: true, User: user, Argv: []string{"sh", "-c", `
		trap 'stty size' WINCH
		tty; echo again >$(tty); echo direct >/dev/tty; echo $TERM; test -t 0 && test -t 1 && test -t 2 && echo terminals
		while :; do read -r line || continue; echo "<$line>"; test "$line" != quit || exit 5; done`}})
	s.expect(t, "\r\nagain\r\ndirect\r\nxterm\r\nterminals\r\n")
	s.resize <- Size{Rows: 33, Cols: 77}
	s.expect(t, "33 77\r\n")
	s.resize <- Size{Rows: 22, Cols: 66}
	s.expect(t, "22 66\r\n")
	s.say(t, "hello\n")
	s.expect(t, "hello\r\n<hello>\r\n") // echo and answer
	s.say(t, "quit\n")
	must.EqOp(t, 5, s.ended(t))
}

func TestHostTerminalControls(t *testing.T) {
	m := startMachine(t, setup{mode: asPID2, private: true})
	s := m.session(t, Command{TTY: true, Argv: []string{"sh", "-c", "echo ready; sleep 1000"}})
	s.expect(t, "ready")
	s.say(t, "\x03")
	must.EqOp(t, 130, s.ended(t))

	// The end of the input also reaches the terminal's reader.
	e := m.do(t, Command{TTY: true, Argv: []string{"sh", "-c", "stty -echo; cat; echo end"}, Stdin: strings.NewReader("text\n")})
	must.EqOp(t, 0, e.code)
	must.StrHasSuffix(t, "text\r\nend\r\n", e.stdout)
}

func TestHostLargeOutput(t *testing.T) {
	m := startMachine(t, setup{mode: asPID2, private: true})
	data := strings.Repeat("0123456789abcde\n", 1<<19) // 8 MiB
	for range 3 {
		must.True(t, data == m.do(t, Command{Argv: []string{"cat"}, Stdin: strings.NewReader(data)}).stdout)
	}
	// The last output of a terminal is not lost when its process exits.
	for range 20 {
		e := m.do(t, Command{TTY: true, Argv: []string{"seq", "1", "20000"}})
		must.StrHasSuffix(t, "\r\n19999\r\n20000\r\n", e.stdout)
		must.EqOp(t, 20000, strings.Count(e.stdout, "\n"))
	}
}

// TestHostOneOutput has one writer for both streams, as script checks do.
func TestHostOneOutput(t *testing.T) {
	m := startMachine(t, setup{mode: asPID2, private: true})
	for range 50 {
		var output bytes.Buffer
		code, err := Run(t.Context(), m.target, Command{
			Argv:   []string{"sh", "-c", "for n in 1 2 3; do echo out $n; echo err $n >&2; done"},
			Stdout: &output, Stderr: &output,
		})
		must.NoError(t, err)
		must.Zero(t, code)
		must.EqOp(t, "out 1\nerr 1\nout 2\nerr 2\nout 3\nerr 3\n", output.String())
	}
}

func TestHostBackground(t *testing.T) {
	m := startMachine(t, setup{mode: asPID2, private: true})
	for _, tty := range []bool{false, true} {
		for range 5 {
			begin := time.Now()
			e := m.do(t, Command{TTY: tty, Argv: []string{"sh", "-c", "trap '' HUP; echo before; sleep 777 & echo after; exit 3"}})
			must.EqOp(t, 3, e.code)
			must.EqOp(t, "before\nafter\n", strings.ReplaceAll(e.stdout, "\r", ""))
			must.Less(t, patience, time.Since(begin))
		}
		// Even a process that writes all the time is ended.
		e := m.do(t, Command{TTY: tty, Argv: []string{"sh", "-c", "yes & exit 4"}})
		must.EqOp(t, 4, e.code)
		waitFor(t, func() bool { return !strings.Contains(m.processes(t), "yes") })
	}
}

// TestHostDeafWriter simulates a client that is gone: its commands end with SIGPIPE, or
// with the hang-up of the terminal.
func TestHostDeafWriter(t *testing.T) {
	m := startMachine(t, setup{mode: asPID2, private: true})
	for tty, want := range map[bool]int{false: 141, true: 129} {
		reader, writer := io.Pipe()
		must.NoError(t, reader.Close())
		code, err := Run(t.Context(), m.target, Command{TTY: tty, Argv: []string{"yes"}, Stdin: unending{}, Stdout: writer})
		must.NoError(t, err)
		must.EqOp(t, want, code)
	}
}

// unending is an input that never ends.
type unending struct{}

func (unending) Read(p []byte) (int, error) {
	time.Sleep(time.Millisecond)
	return copy(p, "x"), nil
}

// processes returns the command lines of all processes of the machine.
func (m *machine) processes(t testing.TB) string {
	t.Helper()
	var lines strings.Builder
	for _, pid := range members(t, m) {
		line, _ := os.ReadFile(filepath.Join("/proc", pid, "cmdline"))
		lines.WriteString(strings.ReplaceAll(string(line), "\x00", " ") + "\n")
	}
	return lines.String()
}

func TestHostCancel(t *testing.T) {
	m := startMachine(t, setup{mode: asPID2, private: true})
	before := m.processes(t)
	for _, tty := range []bool{false, true} {
		// set -m puts each process in a group of its own, the last one in the foreground.
		s := m.session(t, Command{TTY: tty, Argv: []string{"sh", "-c", `trap "" TERM INT HUP; set -m; sleep 501 & sleep 502 & echo ready; sleep 503`}})
		s.expect(t, "ready")
		waitFor(t, func() bool { return strings.Contains(m.processes(t), "503") })
		begin := time.Now()
		s.cancel()
		must.EqOp(t, 137, s.ended(t))
		must.Less(t, patience, time.Since(begin))
		waitFor(t, func() bool { return m.processes(t) == before })
	}
}

// TestHostCancelAnytime cancels commands at all stages of their start.
func TestHostCancelAnytime(t *testing.T) {
	m := startMachine(t, setup{mode: asPID2, private: true})
	before := m.processes(t)
	outcomes := make(map[string]int)
	for n := range 120 {
		ctx, cancel := context.WithTimeout(context.Background(), time.Duration(n)*200*time.Microsecond)
		code, err := Run(ctx, m.target, Command{TTY: n%2 == 0, Argv: []string{"sleep", "600"}})
		cancel()
		if err != nil {
			outcomes["not run"]++
		} else {
			must.EqOp(t, 137, code)
			outcomes["killed"]++
		}
	}
	t.Log(outcomes)
	must.MapContainsKey(t, outcomes, "not run")
	waitFor(t, func() bool { return m.processes(t) == before })
	must.EqOp(t, "", zombies(t))
}

// zombies returns our children that have not been waited for.
func zombies(t testing.TB) string {
	t.Helper()
	out, err := exec.Command("ps", "--no-headers", "-o", "pid,stat,args", "--ppid", fmt.Sprint(os.Getpid())).Output()
	if err != nil {
		return "" // there are no children
	}
	var lines []string
	for line := range strings.Lines(string(out)) {
		if !strings.Contains(line, "ps --no-headers") {
			lines = append(lines, line)
		}
	}
	return strings.Join(lines, "")
}

func TestHostLeaks(t *testing.T) {
	m := startMachine(t, setup{mode: asPID2, private: true})
	before := m.processes(t)
	descriptors := func() int {
		entries, err := os.ReadDir("/proc/self/fd")
		must.NoError(t, err)
		return len(entries)
	}
	command := func(n int) Command {
		return Command{TTY: n%2 == 0, Argv: []string{"sh", "-c", "echo x; sleep 0"}, Stdin: strings.NewReader("in\n")}
	}
	m.do(t, command(0))
	fds, goroutines := descriptors(), runtime.NumGoroutine()
	for n := range 100 {
		m.do(t, command(n))
		_, err := Run(t.Context(), m.target, Command{User: "nemo", Argv: []string{"true"}})
		must.Error(t, err)
		m.do(t, Command{TTY: n%2 == 0, Argv: []string{"nothing"}})
	}
	waitFor(t, func() bool { return descriptors() <= fds && runtime.NumGoroutine() <= goroutines })
	must.EqOp(t, "", zombies(t))
	must.EqOp(t, before, m.processes(t))
}

func TestHostConcurrent(t *testing.T) {
	m := startMachine(t, setup{mode: asPID1, private: true})
	var wg sync.WaitGroup
	for n := range 20 {
		wg.Go(func() {
			e := m.do(t, Command{TTY: n%2 == 0, Argv: []string{"sh", "-c", fmt.Sprintf("sleep 0.%d; exit %d", n%3, n)}})
			if e.code != n {
				t.Errorf("exit code %d, want %d", e.code, n)
			}
		})
	}
	wg.Wait()
	must.EqOp(t, "", zombies(t))
}

// TestHostStop stops machines while commands run in them. A process that the guest's
// shutdown cannot end would delay it by 90 s.
func TestHostStop(t *testing.T) {
	for name, s := range map[string]setup{
		"pid1": {mode: asPID1, options: []string{"--kill-signal=SIGTERM"}, private: true},
		"pid2": {mode: asPID2, private: true},
		"boot": {mode: boot, private: true},
	} {
		t.Run(name, func(t *testing.T) {
			m := startMachine(t, s)
			plain := m.session(t, Command{Argv: []string{"sh", "-c", "echo ready; sleep 1000"}})
			// This behaves like an interactive shell. A guest's shutdown also sends
			// SIGHUP.
			tty := m.session(t, Command{TTY: true, Argv: []string{"sh", "-c", "trap '' TERM; echo ready; sleep 1000; sleep 1000"}})
			plain.expect(t, "ready")
			tty.expect(t, "ready")
			begin := time.Now()
			m.stop()
			must.Less(t, patience, time.Since(begin))
			t.Log("stopped in", time.Since(begin))
			must.Positive(t, plain.ended(t))
			must.Positive(t, tty.ended(t))
		})
	}
}

func TestHostKilledMachine(t *testing.T) {
	m := startMachine(t, setup{mode: asPID2, private: true})
	s := m.session(t, Command{Argv: []string{"sh", "-c", "echo ready; sleep 1000"}})
	s.expect(t, "ready")
	run(t, "systemctl", "kill", "--kill-whom=main", "--signal=KILL", m.unit)
	must.EqOp(t, 137, s.ended(t))
}

func BenchmarkHostRun(b *testing.B) {
	for name, s := range map[string]setup{
		"plain":   {mode: asPID2},
		"private": {mode: asPID2, private: true},
	} {
		b.Run(name, func(b *testing.B) {
			m := startMachine(b, s)
			for b.Loop() {
				code, err := Run(b.Context(), m.target, Command{Argv: []string{"/bin/true"}})
				must.NoError(b, err)
				must.EqOp(b, 0, code)
			}
		})
	}
}
