package enter

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"nomad-driver-nspawn/e2e/host/hosttest"
	"nomad-driver-nspawn/nspawn/enter/container"
)

const (
	busybox = hosttest.Busybox
	debian  = hosttest.Debian
)

func TestMain(m *testing.M) {
	if container.Called(os.Args) {
		container.Main()
	}
	if len(os.Args) == 3 && os.Args[1] == traceArg {
		traceMain(os.Args[2])
	}
	os.Exit(m.Run())
}

// machine is a container in a transient unit, as the driver makes them.
type machine struct {
	unit   string
	root   string
	target Target
}

// setup says how to start a machine.
type setup struct {
	mode       string
	options    []string // options of systemd-nspawn
	private    bool     // with a user namespace
	properties []string
}

// Modes. A booted machine runs the Debian guest, the others run busybox.
const (
	asPID1 = "--console=read-only"
	asPID2 = "--as-pid2"
	boot   = "--boot"
)

var machines atomic.Int32

// startMachine returns a machine whose payload is running.
func startMachine(t testing.TB, s setup) *machine {
	t.Helper()
	m := launchMachine(t, s)
	m.settle(t, s.mode)
	return m
}

// launchMachine returns a machine as soon as it is reported as started.
func launchMachine(t testing.TB, s setup) *machine {
	t.Helper()
	hosttest.Require(t)
	n := int(machines.Add(1))
	m := &machine{unit: fmt.Sprintf("enter-%d-%d.service", os.Getpid(), n)}
	guest, payload := busybox, []string{"/bin/sh", "-c", "trap 'exit 0' TERM; while :; do sleep 1000 & wait $!; done"}
	if s.mode == boot {
		guest, payload = debian, nil
	}
	if _, err := os.Stat(guest + "/bin"); err != nil {
		t.Fatalf("no guest image: run disposable-host with --bind \"$(disposable-host image …)\":%s:ro", guest)
	}
	m.root = filepath.Join("/var/lib/machines", strings.TrimSuffix(m.unit, ".service"))
	run(t, "cp", "-a", guest, m.root)
	t.Cleanup(func() { _ = os.RemoveAll(m.root) })

	args := []string{
		"--unit=" + m.unit, "--quiet", "-p", "Type=notify", "-p", "Delegate=yes", "-p", "KillMode=mixed",
		"-p", "PrivateMounts=yes", "-p", "RestartForceExitStatus=133", "-p", "TimeoutStopSec=60",
	}
	for _, property := range s.properties {
		args = append(args, "-p", property)
	}
	args = append(args, "systemd-nspawn", "--keep-unit", "--quiet", "--settings=no", "--register=no", "--link-journal=no",
		"--resolv-conf=off", "--timezone=off", "-M", fmt.Sprintf("e%d-%d", os.Getpid(), n), "-D", m.root)
	if s.private {
		args = append(args, fmt.Sprintf("--private-users=%d:65536", 0x10000*(n+10)), "--private-users-ownership=map")
	}
	args = append(append(args, s.mode), s.options...)
	run(t, "systemd-run", append(args, payload...)...)
	t.Cleanup(m.stop)
	m.target = m.find(t)
	return m
}

func (m *machine) settle(t testing.TB, mode string) {
	t.Helper()
	switch mode {
	case boot: // the leader moves to another cgroup once
		waitFor(t, func() bool {
			m.target.Cgroup = cgroupOf(t, m.target.Leader)
			return strings.HasSuffix(m.target.Cgroup, "/init.scope")
		})
		waitFor(t, func() bool {
			state := m.do(t, Command{Argv: []string{"systemctl", "is-system-running", "--wait"}}).stdout
			return state == "running\n" || state == "degraded\n"
		})
	default:
		waitFor(t, func() bool { return strings.Contains(m.processes(t), "\nsleep 1000 \n") })
	}
}

func (m *machine) stop() {
	_ = exec.Command("systemctl", "stop", m.unit).Run()
	_ = exec.Command("systemctl", "reset-failed", m.unit).Run()
}

// find finds the leader: the child of nspawn that is PID 1 of a namespace.
func (m *machine) find(t testing.TB) Target {
	t.Helper()
	main := strings.TrimSpace(run(t, "systemctl", "show", "--value", "-p", "MainPID", m.unit))
	children, err := os.ReadFile(fmt.Sprintf("/proc/%s/task/%s/children", main, main))
	must.NoError(t, err)
	for child := range strings.FieldsSeq(string(children)) {
		pid, err := strconv.Atoi(child)
		must.NoError(t, err)
		status, err := readStatus(pid)
		if err == nil && strings.HasSuffix(status["NSpid"], "\t1") {
			cgroup := cgroupOf(t, pid)
			before, _, found := strings.Cut(cgroup, "/payload")
			must.True(t, found, must.Sprint(cgroup))
			return Target{Leader: pid, Cgroup: cgroup, Delegated: before + "/payload"}
		}
	}
	t.Fatalf("%s has no leader", m.unit)
	return Target{}
}

func cgroupOf(t testing.TB, pid int) string {
	t.Helper()
	content, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	must.NoError(t, err)
	for line := range strings.Lines(string(content)) {
		if path, ok := strings.CutPrefix(line, "0::"); ok {
			return filepath.Join("/sys/fs/cgroup", strings.TrimSpace(path))
		}
	}
	t.Fatal("no unified cgroup")
	return ""
}

// ended is the result of a command.
type ended struct {
	code           int
	stdout, stderr string
}

// do runs the command until it has ended.
func (m *machine) do(t testing.TB, c Command) ended {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	var stdout, stderr bytes.Buffer
	c.Stdout, c.Stderr = &stdout, &stderr
	code, err := Run(ctx, m.target, c)
	must.NoError(t, err)
	must.NoError(t, ctx.Err())
	return ended{code, stdout.String(), stderr.String()}
}

// sh runs a script in the machine, which must succeed, and returns its output.
func (m *machine) sh(t testing.TB, script string) string {
	t.Helper()
	e := m.do(t, Command{Argv: []string{"/bin/sh", "-c", script}})
	must.EqOp(t, 0, e.code, must.Sprint(e.stderr))
	must.EqOp(t, "", e.stderr)
	return strings.TrimSpace(e.stdout)
}

func run(t testing.TB, name string, args ...string) string {
	t.Helper()
	cmd := exec.Command(name, args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	must.NoError(t, err, must.Sprintf("%s %q: %s", name, args, &stderr))
	return string(out)
}
