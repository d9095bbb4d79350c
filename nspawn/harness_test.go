package nspawn

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"nomad-driver-nspawn/e2e/host/hosttest"
	"nomad-driver-nspawn/nspawn/dirs"
	"nomad-driver-nspawn/nspawn/enter/container"
	"nomad-driver-nspawn/nspawn/gate/inside"
	"nomad-driver-nspawn/nspawn/idmap"
	"nomad-driver-nspawn/nspawn/launch"
	"nomad-driver-nspawn/nspawn/machine"
	"nomad-driver-nspawn/nspawn/network"
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

// told logs the notices of a stop.
func told(t *testing.T) func(string) { return func(text string) { t.Log(text) } }
