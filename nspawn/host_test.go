package nspawn

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"

	"nomad-driver-nspawn/e2e/host/hosttest"
	"nomad-driver-nspawn/nspawn/dirs"
	"nomad-driver-nspawn/nspawn/enter"
	"nomad-driver-nspawn/nspawn/enter/container"
	"nomad-driver-nspawn/nspawn/gate/inside"
	"nomad-driver-nspawn/nspawn/idmap"
	"nomad-driver-nspawn/nspawn/launch"
	"nomad-driver-nspawn/nspawn/machine"
	"nomad-driver-nspawn/nspawn/network"
	"nomad-driver-nspawn/nspawn/network/links"
	"nomad-driver-nspawn/nspawn/network/ports"
	"nomad-driver-nspawn/nspawn/parts"
	"nomad-driver-nspawn/nspawn/process"
	"nomad-driver-nspawn/nspawn/stage"
	"nomad-driver-nspawn/nspawn/systemd"
)

func TestMain(m *testing.M) {
	if launch.Called(os.Args) {
		launch.Main()
	}
	if os.Getenv(exchangeVariable) != "" {
		exchangeMain()
	}
	if inside.Called(os.Args) {
		inside.Main()
	}
	if container.Called(os.Args) {
		container.Main()
	}
	os.Exit(m.Run())
}

var machineNumber atomic.Int32

// newMachine returns the spec of a busybox command in a new machine. The machine is
// removed at the end of the test, which fails if anything of it is left.
func newMachine(t *testing.T, m *Manager, script string) machine.Spec {
	hosttest.Require(t)
	name := fmt.Sprintf("t%d-%d", machineNumber.Add(1), os.Getpid())
	t.Cleanup(func() {
		must.NoError(t, m.Remove(context.Background(), name))
		must.Eq(t, nil, traces(t, m, name))
	})
	return machine.Spec{
		Machine: name,
		Root:    machine.Root{Image: hosttest.Busybox, UserNamespace: true},
		Mode:    machine.ProcessTwo,
		Command: []string{"/bin/sh", "-c", script},
	}
}

func newBooted(t *testing.T, m *Manager) machine.Spec {
	spec := newMachine(t, m, "")
	spec.Mode, spec.Command, spec.Root.Image = machine.Boot, nil, hosttest.Debian
	return spec
}

func newManager(t *testing.T) *Manager {
	hosttest.Require(t)
	bus := systemd.New(systemd.SystemBus)
	t.Cleanup(bus.Close)
	m := NewManager(bus, dirs.Default, network.New())
	must.NoError(t, stage.PrepareDir(m.dirs.Pins())) // once in a host's life
	return m
}

// traces returns the things on the host that bear the machine's name.
func traces(t *testing.T, m *Manager, name string) (found []string) {
	if _, err := m.Status(context.Background(), name); !errors.Is(err, ErrLost) {
		found = append(found, fmt.Sprintf("unit: %v", err))
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	must.NoError(t, err)
	if strings.Contains(string(mounts), name) {
		found = append(found, "mount")
	}
	for _, pattern := range []string{
		m.dirs.Machine(name), m.dirs.WritableLayer(name), m.dirs.Pin(name), "/run/systemd/machines/" + name,
		"/run/systemd/nspawn/unix-export/" + name, "/run/systemd/nspawn/propagate/" + name,
	} {
		if _, err := os.Lstat(pattern); err == nil {
			found = append(found, pattern)
		}
	}
	if _, ok, err := (idmap.Ranges{Dir: m.dirs.Ranges()}).Lookup(name); ok || err != nil {
		found = append(found, fmt.Sprintf("UID range: %v", err))
	}
	return found
}

// output collects what the machine writes. Call it after the machine's end.
type output struct {
	notices        []string
	stdout, stderr chan string
	events         <-chan Event
}

func start(t *testing.T, m *Manager, spec machine.Spec, steps ...Step) (output, error) {
	out := output{stdout: make(chan string, 1), stderr: make(chan string, 1)}
	pipe := func(to chan string) *os.File {
		r, w, err := os.Pipe()
		must.NoError(t, err)
		go func() {
			text, _ := io.ReadAll(r)
			to <- string(text)
		}()
		return w
	}
	follower, err := m.Start(t.Context(), spec, func(text string) { out.notices = append(out.notices, text) }, func() (Streams, error) {
		return Streams{Stdout: pipe(out.stdout), Stderr: pipe(out.stderr)}, nil
	}, steps...)
	if err == nil {
		out.events = follower.Events(t.Context())
	}
	return out, err
}

// awaitEvent waits for an event. It fails the test if the machine ends first.
func awaitEvent(t *testing.T, out output, kind EventKind) {
	for event := range out.events {
		if event.Kind == kind {
			return
		}
	}
	must.Unreachable(t, must.Sprintf("the machine has ended; its stdout: %q; its stderr: %q", <-out.stdout, <-out.stderr))
}

func mustStart(t *testing.T, m *Manager, spec machine.Spec, steps ...Step) output {
	out, err := start(t, m, spec, steps...)
	must.NoError(t, err)
	return out
}

func mustWait(t *testing.T, m *Manager, name string) Exit {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	exit, err := m.Wait(ctx, name)
	must.NoError(t, err)
	return exit
}

func TestHostExitCodes(t *testing.T) {
	m := newManager(t)
	for _, mode := range []machine.Mode{machine.ProcessOne, machine.ProcessTwo} {
		for _, code := range []int{0, 7} {
			spec := newMachine(t, m, fmt.Sprintf("echo out; echo err >&2; exit %d", code))
			spec.Mode = mode
			out := mustStart(t, m, spec)
			must.Eq(t, Exit{Code: code}, mustWait(t, m, spec.Machine))
			// The record stays until the machine is removed.
			status, err := m.Status(t.Context(), spec.Machine)
			must.NoError(t, err)
			must.Eq(t, &Exit{Code: code}, status.Exit)
			must.NoError(t, m.Remove(t.Context(), spec.Machine))
			must.Eq(t, "out\n", <-out.stdout)
			must.Eq(t, "err\n", <-out.stderr) // and no message of nspawn
		}
	}
}

func TestHostStopIsGraceful(t *testing.T) {
	m := newManager(t)
	for _, mode := range []machine.Mode{machine.ProcessOne, machine.ProcessTwo} {
		spec := newMachine(t, m, "trap 'echo bye; exit 5' TERM; echo up; while :; do sleep 1000 & wait $!; done")
		spec.Mode = mode
		out := mustStart(t, m, spec)
		awaitTrap(t, m, spec)
		begin := time.Now()
		must.NoError(t, m.Stop(t.Context(), spec.Machine, mode, unix.SIGTERM, time.Minute, told(t)))
		must.Less(t, 50*time.Second, time.Since(begin)) // not the minute after which it is killed
		must.Eq(t, Exit{Code: 5}, mustWait(t, m, spec.Machine))
		must.NoError(t, m.Remove(t.Context(), spec.Machine))
		must.Eq(t, "up\nbye\n", <-out.stdout)
	}
}

// awaitTrap returns when the shell of the machine waits for its child. By then it has set
// its traps.
func awaitTrap(t *testing.T, m *Manager, spec machine.Spec) {
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		leader, err := m.leader(t.Context(), spec.Machine)
		must.NoError(t, err)
		if payload, err := process.Payload(leader, spec.Mode); err == nil {
			children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", payload.PID, payload.PID))
			if err == nil && len(children) > 0 {
				return
			}
		}
		must.True(t, time.Now().Before(deadline), must.Sprint("the payload's child does not appear"))
	}
}

func TestHostStopKillsAfterTimeout(t *testing.T) {
	m := newManager(t)
	spec := newMachine(t, m, "trap '' TERM; while :; do sleep 1000; done")
	mustStart(t, m, spec)
	awaitTrap(t, m, spec)
	begin := time.Now()
	must.NoError(t, m.Stop(t.Context(), spec.Machine, spec.Mode, unix.SIGTERM, 300*time.Millisecond, told(t)))
	took := time.Since(begin)
	must.GreaterEq(t, 300*time.Millisecond, took)
	must.Less(t, 30*time.Second, took) // systemd's own timeout is 90 s
	mustWait(t, m, spec.Machine)
}

func TestHostSignalReachesPayload(t *testing.T) {
	m := newManager(t)
	for _, mode := range []machine.Mode{machine.ProcessOne, machine.ProcessTwo} {
		spec := newMachine(t, m, "trap 'exit 42' USR1; while :; do sleep 1000 & wait $!; done")
		spec.Mode = mode
		mustStart(t, m, spec)
		awaitTrap(t, m, spec)
		must.NoError(t, m.Signal(t.Context(), spec.Machine, mode, unix.SIGUSR1))
		must.Eq(t, Exit{Code: 42}, mustWait(t, m, spec.Machine))
		must.ErrorIs(t, m.Signal(t.Context(), spec.Machine, mode, unix.SIGUSR1), os.ErrProcessDone)
		must.NoError(t, m.Stop(t.Context(), spec.Machine, mode, unix.SIGTERM, time.Second, told(t))) // it is already stopped
	}
}

// TestHostNotifyReady has a command report that it is ready. nspawn accepts that only from
// PID 1 ("Received notify message from process that is not the payload's PID 1"), in whose
// name root may speak. nspawn does not confirm that it has read the message.
func TestHostNotifyReady(t *testing.T) {
	m := newManager(t)
	for _, mode := range []machine.Mode{machine.ProcessOne, machine.ProcessTwo} {
		spec := newMachine(t, m, "systemd-notify --pid=1 --no-block --ready && exec sleep 1000")
		spec.Mode, spec.Root.Image, spec.NotifyReady = mode, hosttest.Debian, true
		awaitEvent(t, mustStart(t, m, spec), Ready)
	}
}

// TestHostBootStopsAtOnce checks that a guest can be stopped before it accepts a signal.
// Nothing is lost, because it has not done anything yet.
func TestHostBootStopsAtOnce(t *testing.T) {
	m := newManager(t)
	spec := newBooted(t, m)
	mustStart(t, m, spec)
	begin := time.Now()
	must.NoError(t, m.Stop(t.Context(), spec.Machine, spec.Mode, machine.Halt, time.Minute, told(t)))
	must.Less(t, 50*time.Second, time.Since(begin)) // not the minute after which it is killed
	mustWait(t, m, spec.Machine)
}

func TestHostBootStops(t *testing.T) {
	m := newManager(t)
	spec := newBooted(t, m)
	awaitEvent(t, mustStart(t, m, spec), Ready)
	registered, err := m.bus.Machine(t.Context(), spec.Machine)
	must.NoError(t, err)
	must.Eq(t, machine.UnitName(spec.Machine), registered.Unit)
	must.NoError(t, m.Stop(t.Context(), spec.Machine, spec.Mode, machine.Halt, time.Minute, told(t)))
	must.Eq(t, Exit{}, mustWait(t, m, spec.Machine))
}

// TestHostEnvironmentArrives passes an environment that breaks careless quoting, or would
// add a second variable, or change nspawn.
func TestHostEnvironmentArrives(t *testing.T) {
	m := newManager(t)
	want := map[string]string{
		"QUOTES": `"'\` + "`$HOME ${HOME} $(id) %%n", "LINES": "a\nB=c\n\n", "EMPTY": "", "UNICODE": "zwölf ☕",
		"COMMENT": "# ; x", "LD_PRELOAD": "/nonexistent.so", "SYSTEMD_LOG_LEVEL": "debug", "PATH": "/bin:/x y",
	}
	spec := newMachine(t, m, `for v in QUOTES LINES EMPTY UNICODE COMMENT LD_PRELOAD SYSTEMD_LOG_LEVEL PATH; do eval "printf '%s=%s\\0' $v \"\$$v\""; done`)
	spec.Environment = want
	out := mustStart(t, m, spec)
	must.Eq(t, Exit{}, mustWait(t, m, spec.Machine))
	must.NoError(t, m.Remove(t.Context(), spec.Machine))
	got := map[string]string{}
	for entry := range strings.SplitSeq(strings.TrimSuffix(<-out.stdout, "\x00"), "\x00") {
		name, value, _ := strings.Cut(entry, "=")
		got[name] = value
	}
	must.Eq(t, want, got)
}

func TestHostArgumentsArrive(t *testing.T) {
	m := newManager(t)
	spec := newMachine(t, m, "")
	spec.Command = []string{"/bin/printf", "[%s]", "$HOME", "${X}", "%n", "a b", "", "line\n2", "--help", `"\`}
	out := mustStart(t, m, spec)
	must.Eq(t, Exit{}, mustWait(t, m, spec.Machine))
	must.NoError(t, m.Remove(t.Context(), spec.Machine))
	must.Eq(t, "[$HOME][${X}][%n][a b][][line\n2][--help][\"\\]", <-out.stdout)
}

func TestHostRootIsPrivateAndDiscarded(t *testing.T) {
	m := newManager(t)
	for range 2 { // the second run must see nothing of the first
		spec := newMachine(t, m, "ls /left; stat -c %u /etc /bin/busybox; echo x >/left; cat /etc/mine")
		spec.Root.Files = []machine.File{{Path: "/etc/mine", Content: "mine\n"}, {Path: "/etc/passwd", Content: "", Keep: true}}
		out := mustStart(t, m, spec)
		must.Eq(t, Exit{}, mustWait(t, m, spec.Machine))
		must.NoError(t, m.Remove(t.Context(), spec.Machine))
		must.Eq(t, "0\n0\nmine\n", <-out.stdout)
	}
}

// TestHostStartReplacesLeftover checks that a start succeeds whatever an earlier start
// left, running or not.
func TestHostStartReplacesLeftover(t *testing.T) {
	m := newManager(t)
	for _, script := range []string{"sleep 1000", "exit 3"} {
		spec := newMachine(t, m, script)
		mustStart(t, m, spec)
		spec.Command[2] = "exit 9"
		mustStart(t, m, spec)
		must.Eq(t, Exit{Code: 9}, mustWait(t, m, spec.Machine))
	}
}

func TestHostStartErrorLeavesNothing(t *testing.T) {
	m := newManager(t)
	for name, c := range map[string]struct {
		breakIt func(*machine.Spec)
		want    string
	}{
		"missing bind":  {func(s *machine.Spec) { s.Binds = []machine.Bind{{Source: "/nonexistent", Destination: "/x"}} }, "/nonexistent"},
		"missing image": {func(s *machine.Spec) { s.Root.Image = "/nonexistent" }, "/nonexistent"},
		"bad option":    {func(s *machine.Spec) { s.ResolvConf = "perhaps" }, "perhaps"},
		"bad netns":     {func(s *machine.Spec) { s.Network.Namespace = "/nonexistent" }, "/nonexistent"},
	} {
		t.Run(name, func(t *testing.T) {
			spec := newMachine(t, m, "true")
			c.breakIt(&spec)
			_, err := start(t, m, spec)
			must.ErrorContains(t, err, c.want)
			t.Log(err)
			must.Eq(t, nil, traces(t, m, spec.Machine))
		})
	}
}

func TestHostInPlace(t *testing.T) {
	m := newManager(t)
	image := filepath.Join("/var/lib/machines", "in-place")
	must.NoError(t, exec.Command("cp", "-a", hosttest.Busybox, image).Run())
	t.Cleanup(func() { must.NoError(t, exec.Command("rm", "-rf", image).Run()) })

	first := newMachine(t, m, "echo x >/kept; while :; do sleep 1000 & wait $!; done")
	first.Root.Image, first.Root.InPlace = image, true
	mustStart(t, m, first)
	awaitTrap(t, m, first)

	second := newMachine(t, m, "true")
	second.Root = first.Root
	_, err := start(t, m, second)
	var busy *parts.BusyError
	must.True(t, errors.As(err, &busy), must.Sprint(err))
	must.Eq(t, first.Machine, busy.Holder)

	must.NoError(t, m.Remove(t.Context(), first.Machine))
	second.Command[2] = "cat /kept"
	out := mustStart(t, m, second)
	must.Eq(t, Exit{}, mustWait(t, m, second.Machine))
	must.NoError(t, m.Remove(t.Context(), second.Machine))
	must.Eq(t, "x\n", <-out.stdout)
	var stat unix.Stat_t
	must.NoError(t, unix.Stat(image+"/kept", &stat))
	must.Eq(t, 0, stat.Uid)
}

func TestHostUsageAndExec(t *testing.T) {
	m := newManager(t)
	spec := newMachine(t, m, "sleep 1000")
	mustStart(t, m, spec)
	usage, err := m.Usage(spec.Machine)
	must.NoError(t, err)
	must.Positive(t, usage.CPUUser+usage.CPUSystem)
	must.Positive(t, *usage.Memory.RSS)
	var out strings.Builder
	code, err := m.Exec(t.Context(), spec.Machine, enter.Command{Argv: []string{"/bin/sh", "-c", "echo in; exit 3"}, Stdout: &out})
	must.NoError(t, err)
	must.Eq(t, 3, code)
	must.Eq(t, "in\n", out.String())
}

// told logs the notices of a stop.
func told(t *testing.T) func(string) { return func(text string) { t.Log(text) } }

// vethStep gives the machine an address, as the driver does.
func vethStep(m *Manager, spec machine.Spec, address *netip.Addr) Step {
	return func(ctx context.Context, waiting Waiting) error {
		c, err := m.Connect(ctx, spec, waiting)
		*address = c.IPv4.Addr()
		return errors.Join(err, c.Warning)
	}
}

func TestHostVeth(t *testing.T) {
	m := newManager(t)
	spec := newMachine(t, m, "mkdir /www; echo hello >/www/x; exec httpd -f -p 80 -h /www")
	spec.Network = machine.Network{Kind: links.Veth}
	var address netip.Addr
	mustStart(t, m, spec, vethStep(m, spec, &address))
	c, err := m.Connection(t.Context(), spec)
	must.NoError(t, err)
	must.Eq(t, address, c.IPv4.Addr())
	must.StrHasSuffix(t, "hello\n", get(t, netip.AddrPortFrom(address, 80), "/x"))
}

// Nobody is told that the network of a machine that has ended is gone.
func TestHostKeepConnectedAfterEnd(t *testing.T) {
	m := newManager(t)
	spec := newMachine(t, m, "true")
	spec.Network = machine.Network{Kind: links.Zone, Of: "ended"}
	var connection links.Connection
	mustStart(t, m, spec, func(ctx context.Context, waiting Waiting) (err error) {
		connection, err = m.Connect(ctx, spec, waiting)
		return err
	})
	mustWait(t, m, spec.Machine)
	m.KeepConnected(t.Context(), spec, connection, func(err error) { t.Error(err) })
	must.NoError(t, m.Remove(t.Context(), spec.Machine))
	m.KeepConnected(t.Context(), spec, connection, func(err error) { t.Error(err) })
}

// A unit with a network namespace has a copy of the host's mounts from systemd 257 on, in
// which the file that pins the machine's own is no pin.
func TestHostGivenNetwork(t *testing.T) {
	m := newManager(t)
	spec := newMachine(t, m, "ls /sys/class/net; exit 7")
	namespace := filepath.Join("/run", "gate-test-"+spec.Machine)
	must.NoError(t, os.WriteFile(namespace, nil, 0o600))
	t.Cleanup(func() { must.NoError(t, os.Remove(namespace)) })
	must.NoError(t, exec.Command("unshare", "--net="+namespace, "true").Run())
	t.Cleanup(func() { must.NoError(t, unix.Unmount(namespace, unix.MNT_DETACH)) })
	spec.Network.Namespace = namespace
	out := mustStart(t, m, spec)
	must.Eq(t, Exit{Code: 7}, mustWait(t, m, spec.Machine))
	must.NoError(t, m.Remove(t.Context(), spec.Machine))
	must.Eq(t, "lo\n", <-out.stdout)
}

// get returns the answer of an HTTP server. The server may need a moment to listen, so a
// refused connection is repeated, up to a limit.
func get(t *testing.T, server netip.AddrPort, path string) string {
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		conn, err := net.DialTCP("tcp", nil, net.TCPAddrFromAddrPort(server))
		if errors.Is(err, unix.ECONNREFUSED) && time.Now().Before(deadline) {
			continue
		}
		must.NoError(t, err)
		defer conn.Close()
		_, err = fmt.Fprintf(conn, "GET %s HTTP/1.0\r\n\r\n", path)
		must.NoError(t, err)
		text, err := io.ReadAll(conn)
		must.NoError(t, err)
		return string(text)
	}
}

func TestHostMachines(t *testing.T) {
	m := newManager(t)
	spec := newMachine(t, m, "sleep 1000")
	spec.JournalFields = map[string]string{"NOMAD_NODE_ID": "n1", "NOMAD_X": "a=b"}
	mustStart(t, m, spec)
	records, err := m.Machines(t.Context())
	must.NoError(t, err)
	i := slices.IndexFunc(records, func(r Record) bool { return r.Machine == spec.Machine })
	must.NotEq(t, -1, i)
	must.Eq(t, spec.JournalFields, records[i].Fields)
	must.Less(t, time.Minute, time.Since(records[i].Started))
}

func TestHostLooksHealthy(t *testing.T) {
	m := newManager(t)
	host := DetectHost(t.Context(), m.bus, m.dirs)
	must.SliceEmpty(t, host.Problems)
	must.NoError(t, host.Overlay)
	must.NoError(t, host.UserNamespaces)
	must.True(t, host.Machined)
	must.True(t, host.Networkd)
	must.GreaterEq(t, MinVersion, host.Version)
}

// TestHostReboot checks that a reboot of the guest is not the end of the machine.
func TestHostReboot(t *testing.T) {
	m := newManager(t)
	spec := newBooted(t, m)
	out := mustStart(t, m, spec)
	awaitEvent(t, out, Ready)
	must.NoError(t, exec.Command("systemctl", "daemon-reload").Run()) // see command
	code, err := m.Exec(t.Context(), spec.Machine, enter.Command{Argv: []string{"touch", "/kept"}})
	must.NoError(t, err)
	must.Zero(t, code)
	_, err = m.Exec(t.Context(), spec.Machine, enter.Command{Argv: []string{"systemctl", "reboot"}})
	must.NoError(t, err)
	awaitEvent(t, out, Rebooted)
	awaitEvent(t, out, Ready)
	code, err = m.Exec(t.Context(), spec.Machine, enter.Command{Argv: []string{"test", "-e", "/kept"}})
	must.NoError(t, err)
	must.Zero(t, code)
	_, err = m.Exec(t.Context(), spec.Machine, enter.Command{Argv: []string{"systemctl", "poweroff"}})
	must.NoError(t, err)
	awaitEvent(t, out, Ended)
	must.Eq(t, Exit{}, mustWait(t, m, spec.Machine))
}

// TestHostBindsInReadOnlyRoot checks that mount points are created even where nspawn could
// not, and belong to root.
func TestHostBindsInReadOnlyRoot(t *testing.T) {
	m := newManager(t)
	dir, file := t.TempDir(), filepath.Join(t.TempDir(), "file")
	must.NoError(t, os.WriteFile(file, []byte("x\n"), 0o644))
	spec := newMachine(t, m, "cat /a/b/file && touch /new/dir/y && stat -c %u /a /a/b /new && ! touch /z")
	spec.Root.ReadOnly = true
	spec.Binds = []machine.Bind{{Source: dir, Destination: "/new/dir"}, {Source: file, Destination: "/a/b/file", ReadOnly: true}}
	out := mustStart(t, m, spec)
	exit := mustWait(t, m, spec.Machine)
	must.NoError(t, m.Remove(t.Context(), spec.Machine))
	must.Eq(t, "x\n0\n0\n0\n", <-out.stdout)
	must.Eq(t, Exit{}, exit, must.Sprint(<-out.stderr))
	var stat unix.Stat_t
	must.NoError(t, unix.Stat(dir+"/y", &stat))
	must.Eq(t, 0, stat.Uid)
}

func TestHostSignalThatKilledPayload(t *testing.T) {
	m := newManager(t)
	for _, mode := range []machine.Mode{machine.ProcessOne, machine.ProcessTwo} {
		spec := newMachine(t, m, "while :; do sleep 1000 & wait $!; done")
		spec.Mode = mode
		out := mustStart(t, m, spec)
		awaitTrap(t, m, spec)
		awaitHeld(t, m, spec)
		must.NoError(t, m.Signal(t.Context(), spec.Machine, mode, unix.SIGKILL))
		for event := range out.events {
			if event.Kind != Ended {
				continue
			}
			if kernelTellsSignal(t) {
				must.Eq(t, Exit{Code: 137, Signal: 9}, event.Exit)
			} else {
				must.Eq(t, map[machine.Mode]Exit{machine.ProcessOne: {Code: 1}, machine.ProcessTwo: {Code: 255}}[mode], event.Exit)
			}
		}
	}
}

// awaitHeld returns when the follower has a pidfd of the payload, which it opens after the
// start.
func awaitHeld(t *testing.T, m *Manager, spec machine.Spec) {
	payload, err := m.payload(t.Context(), spec.Machine, spec.Mode)
	must.NoError(t, err)
	for deadline := time.Now().Add(30 * time.Second); !holds(t, payload.PID); time.Sleep(10 * time.Millisecond) {
		must.True(t, time.Now().Before(deadline), must.Sprint("no pidfd of the payload is opened"))
	}
}

// holds reports whether this process has a pidfd of another one.
func holds(t *testing.T, pid int) bool {
	files, err := filepath.Glob("/proc/self/fdinfo/*")
	must.NoError(t, err)
	return slices.ContainsFunc(files, func(path string) bool {
		info, _ := os.ReadFile(path) // it may have been closed
		return strings.Contains(string(info), fmt.Sprintf("\nPid:\t%d\n", pid))
	})
}

func kernelTellsSignal(t *testing.T) bool {
	var name unix.Utsname
	must.NoError(t, unix.Uname(&name))
	var major, minor int
	_, err := fmt.Sscanf(unix.ByteSliceToString(name.Release[:]), "%d.%d", &major, &minor)
	must.NoError(t, err)
	return major > 6 || major == 6 && minor >= 15
}

// TestHostJournalLink checks that the link to the guest's journal is removed with the
// machine.
func TestHostJournalLink(t *testing.T) {
	m := newManager(t)
	image := filepath.Join("/var/lib/machines", "journal-in-place")
	must.NoError(t, exec.Command("cp", "-a", hosttest.Debian, image).Run())
	t.Cleanup(func() { must.NoError(t, exec.Command("rm", "-rf", image).Run()) })
	for id, root := range map[string]machine.Root{
		"5b3d7a52-9c1e-4f0a-8e6d-0123456789ab": {Image: hosttest.Debian, UserNamespace: true},
		"5b3d7a52-9c1e-4f0a-8e6d-0123456789ac": {Image: image, InPlace: true},
	} {
		spec := newBooted(t, m)
		spec.Machine, spec.UUID, spec.LinkJournal, spec.Root = machine.Name(id, "journal"), id, "try-guest", root
		t.Cleanup(func() { must.NoError(t, m.Remove(context.Background(), spec.Machine)) })
		awaitEvent(t, mustStart(t, m, spec), Ready)
		link := filepath.Join("/var/log/journal", strings.ReplaceAll(id, "-", ""))
		_, err := os.Readlink(link)
		must.NoError(t, err)
		must.NoError(t, m.Remove(t.Context(), spec.Machine))
		_, err = os.Lstat(link)
		must.ErrorIs(t, err, os.ErrNotExist)
	}
}

// TestHostKilledNspawnLeavesNothing kills nspawn, which then cannot clean up.
func TestHostKilledNspawnLeavesNothing(t *testing.T) {
	m := newManager(t)
	before, mountsBefore := locks(t), mountPoints(t)
	for range 2 { // what is left of the first does not prevent the second start
		spec := newMachine(t, m, "mkdir /www; echo hello >/www/x; exec httpd -f -p 80 -h /www")
		spec.Network = machine.Network{Kind: links.Veth, Ports: []ports.Mapping{{Host: 8099, Container: 80}}}
		var address netip.Addr
		mustStart(t, m, spec, vethStep(m, spec, &address))
		must.StrHasSuffix(t, "hello\n", get(t, netip.AddrPortFrom(address, 80), "/x"))
		must.StrContains(t, forwarded(t), "8099")
		must.NoError(t, m.bus.KillUnit(t.Context(), machine.UnitName(spec.Machine), "main", int(unix.SIGKILL)))
		must.Eq(t, Exit{Code: 137, Signal: 9}, mustWait(t, m, spec.Machine))
		must.NoError(t, m.Remove(t.Context(), spec.Machine))
		must.Eq(t, before, locks(t))
		must.Eq(t, mountsBefore, mountPoints(t))
		must.StrNotContains(t, forwarded(t), "8099")
	}
}

func mountPoints(t *testing.T) (points []string) {
	table, err := os.ReadFile("/proc/1/mountinfo")
	must.NoError(t, err)
	for line := range strings.Lines(string(table)) {
		points = append(points, strings.Fields(line)[4])
	}
	slices.Sort(points)
	return points
}

// forwarded returns the forwarded ports of the host.
func forwarded(t *testing.T) string {
	t.Helper()
	out, err := exec.Command("nft", "list", "table", "inet", ports.TableName).CombinedOutput()
	must.NoError(t, err, must.Sprint(string(out)))
	return string(out)
}

func locks(t *testing.T) []string {
	files, err := filepath.Glob("/run/systemd/nspawn/locks/*")
	must.NoError(t, err)
	return files
}

// TestHostBindInBind mounts a volume in the task's directory, and checks that nothing of
// the machine is mounted on the host.
func TestHostBindInBind(t *testing.T) {
	m := newManager(t)
	local, volume, file := t.TempDir(), t.TempDir(), filepath.Join(t.TempDir(), "file")
	must.NoError(t, os.WriteFile(file, []byte("content\n"), 0o644))
	must.NoError(t, os.Chmod(volume, 0o755))
	must.NoError(t, stage.PrepareDir(m.dirs.Pins())) // it stays mounted
	before := mountPoints(t)
	spec := newMachine(t, m, `stat -c '%u %n' /local /local/data/deep && cat /local/file && echo x >/local/data/deep/x`)
	spec.Root.UserNamespace = true
	spec.Binds = []machine.Bind{
		{Source: local, Destination: "/local", ChownFallback: true},
		{Source: volume, Destination: "/local/data/deep"},
		{Source: file, Destination: "/local/file", ReadOnly: true},
	}
	out := mustStart(t, m, spec)
	must.Eq(t, before, mountPoints(t))
	exit := mustWait(t, m, spec.Machine)
	must.NoError(t, m.Remove(t.Context(), spec.Machine))
	must.Eq(t, Exit{}, exit)
	must.Eq(t, "0 /local\n0 /local/data/deep\ncontent\n", <-out.stdout, must.Sprint(<-out.stderr))
	for _, made := range []string{local + "/data", local + "/data/deep", volume + "/x"} {
		var stat unix.Stat_t
		must.NoError(t, unix.Stat(made, &stat))
		must.Zero(t, stat.Uid, must.Sprint(made))
	}
}

// TestHostBindThatCannotBeMapped uses a file system that cannot be ID-mapped, the overlay
// of the disposable host's own root. A directory that only this machine uses is given to
// the machine's root; everything else is refused.
func TestHostBindThatCannotBeMapped(t *testing.T) {
	m := newManager(t)
	dir, err := os.MkdirTemp("/opt", "unmappable")
	must.NoError(t, err)
	t.Cleanup(func() { must.NoError(t, os.RemoveAll(dir)) })
	must.NoError(t, os.Mkdir(dir+"/sub", 0o700))
	must.NoError(t, os.WriteFile(dir+"/sub/token", []byte("secret\n"), 0o600))
	must.NoError(t, os.Symlink("/etc/passwd", dir+"/link"))

	spec := newMachine(t, m, "cat /x/sub/token && stat -c %u:%g /x /x/sub/token && touch /x/mine")
	spec.Binds = []machine.Bind{{Source: dir, Destination: "/x"}}
	_, err = start(t, m, spec)
	must.ErrorContains(t, err, "bind "+dir+" to /x: map owners for a user namespace")
	must.ErrorContains(t, err, "file system overlay")

	spec.Binds[0].ChownFallback = true
	out := mustStart(t, m, spec)
	must.Eq(t, Exit{}, mustWait(t, m, spec.Machine))
	must.NoError(t, m.Remove(t.Context(), spec.Machine))
	must.Eq(t, "secret\n0:0\n0:0\n", <-out.stdout)
	var stat unix.Stat_t
	must.NoError(t, unix.Stat("/etc/passwd", &stat))
	must.Eq(t, 0, stat.Uid)
}

// TestHostDiskLimitRefused checks that nothing is started if a limit cannot be enforced.
func TestHostDiskLimitRefused(t *testing.T) {
	bus, state := newManager(t).bus, t.TempDir()
	must.NoError(t, unix.Mount("tmpfs", state, "tmpfs", 0, ""))
	t.Cleanup(func() { must.NoError(t, unix.Unmount(state, 0)) })
	m := NewManager(bus, dirs.Dirs{Run: dirs.Default.Run, State: state}, network.New())
	spec := newMachine(t, m, "true")
	spec.Root.WritableLayer.Max = 1 << 30
	_, err := start(t, m, spec)
	must.EqError(t, err, "the file system below "+state+"/machines, tmpfs, does not limit directories: "+
		"mount ext4 or xfs with prjquota, or btrfs with quotas there; or set in_memory in the disk block")
	must.Eq(t, nil, traces(t, m, spec.Machine))
	must.EqOp(t, "", DetectHost(t.Context(), m.bus, m.dirs).QuotaKind)
}
