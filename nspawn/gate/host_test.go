package gate

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"nomad-driver-nspawn/e2e/host/hosttest"
	"nomad-driver-nspawn/nspawn/enter"
	"nomad-driver-nspawn/nspawn/gate/inside"
)

const (
	asPID1 = "--console=pipe"
	asPID2 = "--as-pid2"
	boot   = "--console=read-only"
)

// uidBase is outside of the ranges of other machines.
const uidBase = 1 << 30

// machine is a container in a transient unit. Its payload is the shim.
type machine struct {
	t          *testing.T
	unit       string
	root, gate string
	uid        int
	output     *os.File // output of the payload
}

var machines atomic.Int32

// newMachine returns a machine that is not started.
func newMachine(t *testing.T, mode string, private bool) *machine {
	hosttest.Require(t)
	dir := t.TempDir()
	m := &machine{t: t, unit: fmt.Sprintf("gate-%d-%d", os.Getpid(), machines.Add(1)), root: dir + "/root", gate: dir + "/gate"}
	image := hosttest.Busybox
	if mode == boot {
		image = hosttest.Debian
	}
	m.run("cp", "-a", image, m.root)
	if private {
		m.uid = uidBase
		m.run("sh", "-c", `chown -hR $((1<<30)):$((1<<30)) "$0"`, m.root)
	}
	must.NoError(t, Make(m.gate))
	output, err := os.CreateTemp(dir, "output")
	must.NoError(t, err)
	m.output = output
	t.Cleanup(func() {
		output.Close()
		// It need not run.
		_ = exec.Command("systemctl", "kill", "--signal=KILL", m.unit).Run()
		_ = exec.Command("systemctl", "stop", m.unit).Run()
		_ = exec.Command("systemctl", "reset-failed", m.unit).Run()
	})
	return m
}

func (m *machine) run(name string, args ...string) string {
	m.t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	must.NoError(m.t, err, must.Sprintf("%s %q: %s", name, args, out))
	return strings.TrimSpace(string(out))
}

// start runs nspawn, with the gate and the shim bound into the machine.
func (m *machine) start(mode string) {
	shim := filepath.Join(filepath.Dir(m.gate), "shim")
	must.NoError(m.t, os.WriteFile(shim, enter.Shim(), 0o755))
	users := "--private-users=no"
	if m.uid != 0 {
		users = fmt.Sprintf("--private-users=%d:65536", m.uid)
	}
	args := []string{
		"--unit=" + m.unit, "--quiet", "--property=Delegate=yes", "--property=KillMode=mixed", "--property=Type=exec",
		"--property=RemainAfterExit=yes", "--property=RestartForceExitStatus=133", "--property=StandardOutput=append:" + m.output.Name(),
		"--property=StandardError=append:" + m.output.Name(),
		"systemd-nspawn", "--quiet", "--keep-unit", "--register=no", "--settings=no", "--machine=" + m.unit, "--directory=" + m.root,
		users, "--private-users-ownership=off", "--bind-ro=" + m.gate + ":" + inside.GateDir, "--bind-ro=" + shim + ":" + inside.ShimPath,
	}
	switch mode {
	case asPID2:
		args = append(args, asPID2, asPID1)
	case boot:
		args = append(args, boot, "--kill-signal=SIGRTMIN+3", "--notify-ready=yes", "--network-veth", "--link-journal=no")
	default:
		args = append(args, mode)
	}
	m.run("systemd-run", append(args, "--", inside.ShimPath, inside.GateArg)...)
}

// end returns the exit status of the payload when it has ended.
func (m *machine) end() string {
	m.t.Helper()
	within(m.t, func() bool {
		state := m.run("systemctl", "show", "--property=SubState", "--value", m.unit)
		return state == "exited" || state == "failed" || state == "dead"
	})
	return m.run("systemctl", "show", "--property=ExecMainStatus", "--value", m.unit)
}

// within waits for a condition that no event reports.
func within(t *testing.T, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !is(); time.Sleep(20 * time.Millisecond) {
		must.True(t, time.Now().Before(deadline), must.Sprint("it does not happen"))
	}
}

func (m *machine) said() string {
	text, err := os.ReadFile(m.output.Name())
	must.NoError(m.t, err)
	return string(text)
}

// await returns the shim of the machine.
func (m *machine) await(g *Gate) *Visitor {
	m.t.Helper()
	ctx, cancel := context.WithTimeout(m.t.Context(), time.Minute)
	defer cancel()
	visitor, err := g.Await(ctx, func(peer Peer) error {
		cgroup, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", peer.PID))
		if err == nil && (peer.UID != m.uid || !strings.Contains(string(cgroup), m.unit+".service")) {
			err = fmt.Errorf("a visitor of UID %d in %s", peer.UID, cgroup)
		}
		return err
	})
	must.NoError(m.t, err, must.Sprint(m.run("journalctl", "-u", m.unit, "--no-pager"), m.said()))
	return visitor
}

func (m *machine) listen() *Gate {
	g, err := Listen(m.gate)
	must.NoError(m.t, err)
	m.t.Cleanup(g.Close)
	return g
}

// do runs instructions in a new machine until the machine has ended.
func do(t *testing.T, mode string, private bool, todo inside.Instructions) (said, status string) {
	m := newMachine(t, mode, private)
	g := m.listen()
	m.start(mode)
	must.NoError(t, m.await(g).Open(t.Context(), todo))
	status = m.end()
	return m.said(), status
}

func forModes(t *testing.T, test func(t *testing.T, mode string, private bool)) {
	for _, mode := range []string{asPID1, asPID2} {
		for _, private := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s private=%t", mode, private), func(t *testing.T) { test(t, mode, private) })
		}
	}
}

// TestHostBegins checks that the payload gets exactly what the shim was told: its
// arguments and variables to the byte, its user and groups, its directory, and no
// additional descriptor.
func TestHostBegins(t *testing.T) {
	forModes(t, func(t *testing.T, mode string, private bool) {
		said, status := do(t, mode, private, inside.Instructions{
			Argv: []string{"sh", "-c", `tr '\0' '\n' </proc/$$/environ; pwd; stat -c %U:%g .; id -u; id -g; echo "$@"; ls /proc/self/fd; exit 7`, "sh", "$HOME ; \\ü", "%n"},
			Env:  []string{"discovery.type=single-node", "NOMAD_PORT_my-http=80", "USER=own", "EMPTY=", "SPACE= a\tb"},
			Dir:  "srv/new/dir", User: "nobody:1234",
		})
		must.Eq(t, "7", status)
		for _, want := range []string{
			"discovery.type=single-node\n", "NOMAD_PORT_my-http=80\n", "USER=own\n", "LOGNAME=nobody\n", "EMPTY=\n", "SPACE= a\tb\n",
			"container=systemd-nspawn\n", "\n/srv/new/dir\nnobody:1234\n65534\n1234\n$HOME ; \\ü %n\n0\n1\n2\n3\n",
		} {
			must.StrContains(t, said, want)
		}
		must.StrNotContains(t, said, "HOME=/root")
	})
}

// TestHostCannotBegin checks that the plugin learns why a payload could not be executed,
// and that nothing has run in the container.
func TestHostCannotBegin(t *testing.T) {
	setUp := `printf '#!/no/such\n' >/w/script; printf 'text\n' >/w/text; printf '\177ELF\2\1\1\0\0\0\0\0\0\0\0\0\2\0\363\0\1\0\0\0' >/w/foreign; head -c 200 /dev/zero >>/w/foreign; : >/w/plain; chmod 755 /w/*; chmod 644 /w/plain; mkdir /w/dir`
	for argv0, want := range map[string]inside.Failure{
		"nosuch":       {Code: 127, Reason: "nosuch: not found in the container: it is in no directory of PATH, /bin:/w"},
		"/no/such":     {Code: 127, Reason: "/no/such: not found in the container"},
		"/w/script":    {Code: 126, Reason: `/w/script: its interpreter "/no/such" is not in the container`},
		"plain":        {Code: 126, Reason: "/w/plain: is not executable (mode 0644)"},
		"/w/dir":       {Code: 126, Reason: "/w/dir: is a directory"},
		"/w/text":      {Code: 126, Reason: "/w/text: is not a program for this host, nor a script that begins with #! (exec format error)"},
		"/w/foreign":   {Code: 126, Reason: "/w/foreign: is a program for another architecture (riscv), not for this host's (amd64)"},
		"/bin/busybox": {},
	} {
		for _, mode := range []string{asPID1, asPID2} {
			t.Run(argv0+" "+mode, func(t *testing.T) {
				m := newMachine(t, mode, true)
				must.NoError(t, os.Mkdir(m.root+"/w", 0o755))
				m.run("sh", "-c", strings.ReplaceAll(setUp, "/w/", m.root+"/w/"))
				g := m.listen()
				m.start(mode)
				err := m.await(g).Open(t.Context(), inside.Instructions{Argv: []string{argv0}, Env: []string{"PATH=/bin:/w"}, User: "1000"})
				if want.Code == 0 {
					must.NoError(t, err)
					must.Eq(t, "0", m.end())
					return
				}
				var failure *inside.Failure
				must.True(t, errors.As(err, &failure), must.Sprint(err))
				must.Eq(t, want, *failure)
				must.Eq(t, fmt.Sprint(want.Code), m.end())
				must.Eq(t, "", m.said())
			})
		}
	}
}

// A shim waits for the next plugin if it finds none, or if its plugin disappears before
// it has sent instructions.
func TestHostWaitsForPlugin(t *testing.T) {
	m := newMachine(t, asPID2, true)
	m.start(asPID2)
	m.await(m.listen()).Close() // the plugin dies in the middle of a start
	second := m.listen()
	second.Close() // the plugin leaves its socket behind, without a listener
	must.NoError(t, m.await(m.listen()).Open(t.Context(), inside.Instructions{Argv: []string{"echo", "done"}}))
	must.Eq(t, "0", m.end())
	must.Eq(t, "done\n", m.said())
}

// TestHostOneVisitor checks that the gate closes after the shim: a payload that connects
// to it is not admitted.
func TestHostOneVisitor(t *testing.T) {
	m := newMachine(t, asPID2, true)
	g := m.listen()
	m.start(asPID2)
	must.NoError(t, m.await(g).Open(t.Context(), inside.Instructions{Argv: []string{inside.ShimPath, inside.GateArg}}))
	conn, err := net.Dial("unix", filepath.Join(m.gate, inside.Socket))
	must.Error(t, err, must.Sprint(conn))
	// The payload runs the shim again, but it is not the one that a plugin waits for.
	refused := errors.New("is not the shim")
	ctx, cancel := context.WithCancel(t.Context())
	_, err = m.listen().Await(ctx, func(Peer) error { cancel(); return refused })
	must.ErrorIs(t, err, context.Canceled)
}

// TestHostBadVisitors checks that a visitor that sends nothing, or too much, blocks
// nobody forever.
func TestHostBadVisitors(t *testing.T) {
	hosttest.Require(t)
	dir := t.TempDir()
	for _, words := range []string{"", strings.Repeat(" ", maxHello+1), "[", `{"Version":1}{"Version":1}`} {
		g, err := Listen(dir)
		must.NoError(t, err)
		go func() {
			conn, err := net.Dial("unix", filepath.Join(dir, inside.Socket))
			if err == nil {
				_, _ = io.WriteString(conn, words)
				_, _ = conn.Read(make([]byte, 1)) // until the gate closes the connection
				conn.Close()
			}
			g.Close()
		}()
		_, err = g.Await(t.Context(), func(Peer) error { return nil })
		must.ErrorIs(t, err, net.ErrClosed, must.Sprintf("%.20q", words))
	}
}

// TestHostBoots boots a guest by way of the shim. It must behave as with --boot, and boot
// again after a reboot, even if no plugin is running at that time.
func TestHostBoots(t *testing.T) {
	m := newMachine(t, boot, true)
	g := m.listen()
	m.start(boot)
	todo := inside.Instructions{Init: true, Argv: []string{"systemd.firstboot=no"}, Env: []string{"GIVEN=1"}}
	for range 2 {
		visitor := m.await(g)
		must.NoError(t, visitor.Open(t.Context(), todo))
		leader := fmt.Sprint(visitor.PID)
		inside := []string{"--target=" + leader, "--all", "--root=/proc/" + leader + "/root", "--wd=/proc/" + leader + "/root"}
		within(t, func() bool {
			state, _ := exec.Command("nsenter", append(inside, "systemctl", "is-system-running", "--wait")...).Output()
			return string(state) == "running\n"
		})
		environment, err := os.ReadFile("/proc/" + leader + "/environ")
		must.NoError(t, err)
		for _, want := range []string{"container=systemd-nspawn", "container_uuid=", "GIVEN=1", "NOTIFY_SOCKET=/run/host/notify"} {
			must.StrContains(t, string(environment), want)
		}
		args, err := os.ReadFile("/proc/" + leader + "/cmdline")
		must.NoError(t, err)
		must.StrContains(t, string(args), "/systemd\x00systemd.firstboot=no\x00")
		restarts := m.run("systemctl", "show", "--property=NRestarts", "--value", m.unit)
		m.run("nsenter", append(inside, "systemctl", "reboot")...)
		within(t, func() bool { return m.run("systemctl", "show", "--property=NRestarts", "--value", m.unit) != restarts })
		g = m.listen()
	}
}

// TestHostCost measures the time from the instructions to the first instruction of the
// payload.
func TestHostCost(t *testing.T) {
	m := newMachine(t, asPID2, true)
	g := m.listen()
	m.start(asPID2)
	visitor := m.await(g)
	begin := time.Now()
	must.NoError(t, visitor.Open(t.Context(), inside.Instructions{Argv: []string{"true"}}))
	must.Less(t, time.Second, time.Since(begin))
	t.Log("word to execve: ", time.Since(begin))
}
