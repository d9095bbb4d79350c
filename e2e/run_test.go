//go:build e2e

package e2e

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/nomad/api"
	"github.com/shoenig/test/must"

	"nomad-driver-nspawn/e2e/agent"
)

var runTests = []test{
	{"exit codes and logs", testExitCodes},
	{"output in the host's journal", testJournald},
	{"exec", testExec},
	{"exec at a terminal", testExecTTY},
	{"signals", testSignals},
	{"signal after a template's change", testTemplateSignal},
	{"stop with a handler", testStopHandled},
	{"stop without a handler", testStopUnhandled},
	{"stop during exec", testStopDuringExec},
	{"stats", testStats},
}

// modes are the config lines for the modes that run a command.
var modes = map[string]string{
	"process two": "process_two = true",
	"process one": "process_two = false",
}

func (l *lab) eachMode(run func(l *lab, config string)) {
	for name, config := range modes {
		l.sub(name, func(l *lab) { run(l, config) })
	}
}

func testExitCodes(l *lab) {
	l.eachMode(func(l *lab, config string) {
		for _, code := range []int{0, 7} {
			out := l.finish(task{config: config, script: fmt.Sprintf("echo out; echo err >&2; exit %d", code)})
			must.Eq(l, agent.Output{Code: code, Stdout: "out\n", Stderr: "err\n"}, out)
		}
	})
}

func testJournald(l *lab) {
	al := l.start(job{tasks: []task{{config: "logging {\ndriver = \"journald\"\n}", script: "echo out; echo err >&2"}}})
	l.ended(al)
	l.onHost("journalctl", "--sync")
	lines := strings.Fields(l.onHost("journalctl", "--identifier="+machineOf(al), "--output=cat", "--no-pager"))
	slices.Sort(lines) // they come through separate streams
	must.Eq(l, []string{"err", "out"}, lines)
}

// loop is the end of a script that keeps running and handles signals at once.
const loop = "echo ready\nwhile true; do sleep 1000 & wait $!; done\n"

func testExec(l *lab) {
	l.eachMode(func(l *lab, config string) {
		al := l.ready(task{config: config, script: loop, more: "env { COLOR = \"deep blue\" }"})
		out, err := al.Exec(l.ctx, "main", "from stdin", "sh", "-c", "cat; echo \" in $COLOR\"; echo oops >&2; exit 3")
		must.NoError(l, err)
		must.Eq(l, agent.Output{Code: 3, Stdout: "from stdin in deep blue\n", Stderr: "oops\n"}, out)

		// A command is as confined as the payload.
		payload := map[string]string{modes["process one"]: "1", modes["process two"]: "2"}[config]
		const confinement = "grep -e CapBnd -e NoNewPrivs /proc/$1/status; for ns in user net pid mnt cgroup; do readlink /proc/$1/ns/$ns; done"
		must.Eq(l, l.exec(al, "sh", "-c", confinement, "", payload), l.exec(al, "sh", "-c", confinement, "", "self"))

		out, err = al.Exec(l.ctx, "main", "", "/bin/no-such-command")
		if err == nil {
			must.NonZero(l, out.Code)
			must.StrContains(l, out.Stderr, "no-such-command")
		} else {
			must.StrContains(l, err.Error(), "no-such-command")
		}
	})
}

// screen collects the output of a terminal and reports when it contains a text.
type screen struct {
	mu    sync.Mutex
	text  strings.Builder
	until string
	seen  chan struct{}
	once  sync.Once
}

func newScreen(until string) *screen { return &screen{until: until, seen: make(chan struct{})} }

func (s *screen) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.text.Write(p)
	if strings.Contains(s.text.String(), s.until) {
		s.once.Do(func() { close(s.seen) })
	}
	return len(p), nil
}

func (s *screen) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.String()
}

func testExecTTY(l *lab) {
	al := l.ready(task{script: loop})
	output := newScreen("24 80")
	sizes := make(chan api.TerminalSize, 2)
	sizes <- api.TerminalSize{Height: 24, Width: 80}
	stdin, keyboard := io.Pipe()
	go func() {
		select {
		case <-output.seen:
			sizes <- api.TerminalSize{Height: 40, Width: 100}
		case <-l.ctx.Done():
		}
		// The shell reads this after it has got the new size.
		_, _ = io.WriteString(keyboard, "typed\n")
	}()
	const script = `tty
until stty size | grep '24 80'; do sleep 0.1; done
until stty size | grep '40 100'; do sleep 0.1; done
read line; echo "read $line"; exit 5`
	code, err := al.ExecTTY(l.ctx, "main", stdin, output, sizes, "sh", "-c", script)
	must.NoError(l, err, must.Sprint(output))
	must.Eq(l, 5, code)
	must.StrContains(l, output.String(), "/dev/pts/")
	must.StrContains(l, output.String(), "40 100")
	must.StrContains(l, output.String(), "read typed")
}

func testSignals(l *lab) {
	l.eachMode(func(l *lab, config string) {
		al := l.ready(task{config: config, script: "trap 'echo got HUP' HUP\ntrap 'echo got USR1' USR1\ntrap 'echo got RTMIN+1' 35\n" + loop})
		for _, name := range []string{"HUP", "USR1", "RTMIN+1"} {
			must.NoError(l, al.Signal(l.ctx, "main", "SIG"+name))
			l.waitLog(al, agent.Stdout, "got "+name+"\n")
		}
		err := al.Signal(l.ctx, "main", "SIGNOPE")
		must.Error(l, err)
		must.StrContains(l, err.Error(), `unknown signal "SIGNOPE"`)
	})
}

func testTemplateSignal(l *lab) {
	write := func(word string) {
		v := &api.Variable{Namespace: "default", Path: "e2e/word", Items: api.VariableItems{"word": word}}
		_, _, err := l.agent.API.Variables().Update(v, (&api.WriteOptions{}).WithContext(l.ctx))
		must.NoError(l, err)
	}
	write("first")
	al := l.ready(task{script: "trap 'cat /local/word' HUP\ncat /local/word\n" + loop, more: `template {
  data          = "word is {{ with nomadVar \"e2e/word\" }}{{ .word }}{{ end }}\n"
  destination   = "local/word"
  change_mode   = "signal"
  change_signal = "SIGHUP"
}`})
	write("second")
	must.Eq(l, "word is first\nready\nword is second\n", l.waitLog(al, agent.Stdout, "second\n"))
}

// patience is a kill_timeout that is used up only if the driver waits without need.
const patience = "30s"

func testStopHandled(l *lab) {
	l.eachMode(func(l *lab, config string) {
		al := l.ready(task{config: config, script: "trap 'echo bye; exit 9' TERM\n" + loop, more: `kill_timeout = "` + patience + `"`})
		began := time.Now()
		now, err := al.Stop(l.ctx)
		must.NoError(l, err)
		must.Less(l, 15*time.Second, time.Since(began))
		must.Eq(l, 9, l.exitCode(now))
		l.waitLog(al, agent.Stdout, "bye\n")
		l.gone(al)
	})
	l.sub("kill_signal", func(l *lab) {
		al := l.ready(task{script: "trap 'exit 8' USR2\n" + loop, more: "kill_signal = \"SIGUSR2\"\nkill_timeout = \"" + patience + `"`})
		now, err := al.Stop(l.ctx)
		must.NoError(l, err)
		must.Eq(l, 8, l.exitCode(now))
	})
}

func testStopUnhandled(l *lab) {
	l.eachMode(func(l *lab, config string) {
		const timeout = 3 * time.Second
		al := l.ready(task{config: config, script: "trap '' TERM\n" + loop, more: `kill_timeout = "3s"`})
		began := time.Now()
		_, err := al.Stop(l.ctx)
		must.NoError(l, err)
		must.Between(l, timeout, time.Since(began), timeout+10*time.Second)
		l.gone(al)
	})
}

func testStopDuringExec(l *lab) {
	al := l.ready(task{script: "trap 'exit 0' TERM\n" + loop, more: `kill_timeout = "` + patience + `"`})
	output := newScreen("started")
	done := make(chan error, 1)
	go func() {
		_, err := al.ExecTTY(l.ctx, "main", strings.NewReader(""), output, nil, "sh", "-c", "echo started; sleep 1000")
		done <- err
	}()
	select {
	case <-output.seen:
	case err := <-done:
		l.Fatalf("exec ended early: %v", err)
	case <-l.ctx.Done():
		l.Fatal("exec did not start")
	}
	began := time.Now()
	_, err := al.Stop(l.ctx)
	must.NoError(l, err)
	must.Less(l, 15*time.Second, time.Since(began))
	select {
	case <-done:
	case <-l.ctx.Done():
		l.Fatal("exec goes on after the task's end")
	}
}

// awaitStats waits until the usage fulfills a condition. Nomad collects the usage each
// second and does not report when it is new, so this polls.
func (l *lab) awaitStats(al *agent.Alloc, until func(*api.ResourceUsage) bool) *api.ResourceUsage {
	l.Helper()
	ticker := time.NewTicker(500 * time.Millisecond)
	defer ticker.Stop()
	for {
		usage, err := al.Stats(l.ctx)
		if err == nil && until(usage) {
			return usage
		}
		select {
		case <-ticker.C:
		case <-l.ctx.Done():
			l.Fatalf("no usage is reported: %v, %+v", err, usage)
		}
	}
}

func testStats(l *lab) {
	al := l.running(task{script: "while true; do :; done"})
	usage := l.awaitStats(al, func(usage *api.ResourceUsage) bool {
		return usage.CpuStats.Percent > 10 && usage.MemoryStats.RSS > 0
	})
	must.SliceNotContains(l, usage.CpuStats.Measured, "Total Ticks")
	must.SliceContains(l, usage.CpuStats.Measured, "Percent")
	must.SliceContains(l, usage.MemoryStats.Measured, "RSS")
	must.Positive(l, usage.CpuStats.TotalTicks)
	text := l.onHost("env", "NOMAD_CLI_SHOW_HINTS=0", "nomad", "alloc", "status", "-stats", al.ID)
	must.StrContains(l, text, "Percent  System Mode  User Mode\n")
}
