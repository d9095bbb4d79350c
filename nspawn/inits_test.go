package nspawn

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"nomad-driver-nspawn/e2e/host"
	"nomad-driver-nspawn/e2e/host/hosttest"
	"nomad-driver-nspawn/nspawn/enter"
	"nomad-driver-nspawn/nspawn/machine"
)

// startInit is a machine that boots one of host.Inits. What it says on its console comes
// piece by piece.
func startInit(t *testing.T, m *Manager, name string) (machine.Spec, <-chan string, <-chan Event) {
	spec := newMachine(t, m, "")
	spec.Mode, spec.Command, spec.Root.Image = machine.Boot, nil, filepath.Join(hosttest.Inits, name)
	reader, writer, err := os.Pipe()
	must.NoError(t, err)
	said := make(chan string, 1000)
	go func() {
		defer close(said)
		buffer := make([]byte, 4096)
		for {
			n, err := reader.Read(buffer)
			if n > 0 {
				said <- string(buffer[:n])
			}
			if err != nil {
				return
			}
		}
	}()
	follower, err := m.Start(t.Context(), spec, told(t), func() (Streams, error) {
		null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
		return Streams{Stdout: writer, Stderr: null}, err
	})
	must.NoError(t, err)
	events := make(chan Event, 100)
	go func() {
		defer close(events)
		for event := range follower.Events(t.Context()) {
			events <- event
		}
	}()
	return spec, said, events
}

// awaitAllUp waits until all is started in a guest, which may be just rebooting.
func awaitAllUp(t *testing.T, m *Manager, name string) {
	t.Helper()
	for deadline := time.Now().Add(3 * time.Minute); ; time.Sleep(50 * time.Millisecond) {
		code, err := m.Exec(t.Context(), name, enter.Command{Argv: []string{"test", "-e", "/run/all-is-up"}})
		if err == nil && code == 0 {
			return
		}
		must.True(t, time.Now().Before(deadline), must.Sprintf("not all is up: code %d, %v", code, err))
	}
}

// awaitSaid returns what was said until a text is in it.
func awaitSaid(t *testing.T, said <-chan string, text string) string {
	t.Helper()
	all := ""
	timeout := time.After(3 * time.Minute)
	for !strings.Contains(all, text) {
		select {
		case more, ok := <-said:
			must.True(t, ok, must.Sprintf("the machine has ended and said %q", all))
			all += more
		case <-timeout:
			t.Fatalf("it does not say %q, but %q", text, all)
		}
	}
	return all
}

// rest returns what was said until the end.
func rest(said <-chan string) (all string) {
	for more := range said {
		all += more
	}
	return all
}

// isUp is what the guests say when all is started (e2e/host/init.go).
const isUp = "all is up"

// Each init that Debian has is seen as running, restarts its guest, and is stopped in its
// own way, long before it would be killed. What it says is text.
func TestHostInits(t *testing.T) {
	hosttest.Require(t)
	m := newManager(t) // one for all, as in a plugin: google/nftables counts sets in a variable of the process
	for _, name := range host.Inits {
		t.Run(name, func(t *testing.T) {
			t.Parallel() // they wait more than they compute
			spec, said, events := startInit(t, m, name)
			text := awaitSaid(t, said, isUp)
			status, err := m.Status(t.Context(), spec.Machine)
			must.NoError(t, err)
			must.Nil(t, status.Exit)
			if reboot := reboots[name]; reboot != nil {
				_, _ = m.Exec(t.Context(), spec.Machine, enter.Command{Argv: reboot}) // may not live to tell
				awaitRebooted(t, events)
				awaitAllUp(t, m, spec.Machine) // not awaited in its logs, which end here with systemd 252
			}
			must.NoError(t, m.Stop(t.Context(), spec.Machine, spec.Mode, machine.Halt, 2*time.Minute, told(t)))
			must.Eq(t, Exit{}, mustWait(t, m, spec.Machine)) // one that was killed ends with 1
			must.NoError(t, m.Remove(t.Context(), spec.Machine))
			text += rest(said)
			must.StrNotContains(t, text, "\x1b", must.Sprintf("%q", text))
			must.StrNotContains(t, ownReturns.ReplaceAllString(text, ""), "\r", must.Sprintf("%q", text))
			must.StrNotContains(t, text, "$TERM is not defined")
			if name == "s6" {
				must.StrContains(t, text, "bye")
			}
		})
	}
}

func awaitRebooted(t *testing.T, events <-chan Event) {
	t.Helper()
	for event := range events {
		if event.Kind == Rebooted {
			return
		}
	}
	t.Fatal("the machine has ended instead of rebooting")
}

// ownReturns are those that sysvinit writes itself.
var ownReturns = regexp.MustCompile(`(?m)^\rINIT: .*\r$`)

// reboots are the commands that restart a guest. There is none of s6 without s6-linux-init.
var reboots = map[string][]string{
	"openrc":   {"openrc-shutdown", "--reboot", "now"},
	"runit":    {"reboot"},
	"sysvinit": {"reboot"},
}

// A guest of runit that is stopped in its first stage, in which it is deaf, is not killed.
func TestHostRunitStopsWhileItBoots(t *testing.T) {
	m := newManager(t)
	spec, said, _ := startInit(t, m, "runit")
	awaitSaid(t, said, "enter stage: /etc/runit/1")
	must.NoError(t, m.Stop(t.Context(), spec.Machine, spec.Mode, machine.Halt, 2*time.Minute, told(t)))
	must.Eq(t, Exit{}, mustWait(t, m, spec.Machine))
}
