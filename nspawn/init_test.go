package nspawn

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"

	"nomad-driver-nspawn/nspawn/enter"
	"nomad-driver-nspawn/nspawn/machine"
)

// newBusyboxInit returns a machine whose init is not systemd, and says bye when it is
// powered off.
func newBusyboxInit(t *testing.T, m *Manager) machine.Spec {
	spec := newMachine(t, m, "")
	spec.Mode, spec.Command = machine.Boot, nil
	spec.Root.Files = []machine.File{{Path: "/etc/inittab", Content: "::respawn:/bin/sleep 1000\n::shutdown:/bin/sh -c 'echo bye >/dev/console'\n"}}
	return spec
}

// awaitUp waits until the init has started its processes.
func awaitUp(t *testing.T, m *Manager, spec machine.Spec) {
	t.Helper()
	code, err := m.Exec(t.Context(), spec.Machine, enter.Command{Argv: []string{"/bin/sh", "-c", "until pidof sleep; do :; done"}})
	must.NoError(t, err)
	must.Zero(t, code)
}

func TestHostBusyboxInit(t *testing.T) {
	m := newManager(t)
	for _, sig := range []unix.Signal{machine.Halt, unix.SIGUSR2} {
		spec := newBusyboxInit(t, m)
		out := mustStart(t, m, spec)
		awaitUp(t, m, spec)
		begin := time.Now()
		must.NoError(t, m.Stop(t.Context(), spec.Machine, spec.Mode, sig, time.Minute, told(t)))
		must.Less(t, 30*time.Second, time.Since(begin))
		must.Eq(t, Exit{}, mustWait(t, m, spec.Machine))
		must.NoError(t, m.Remove(t.Context(), spec.Machine))
		must.StrContains(t, <-out.stdout, "bye")
	}
}

// TestHostUnknownInit checks that an unknown init is reported, and gets its time.
func TestHostUnknownInit(t *testing.T) {
	m := newManager(t)
	spec := newMachine(t, m, "")
	spec.Mode, spec.Command = machine.Boot, nil
	spec.Root.Files = []machine.File{
		{Path: "/sbin/poweroff", Content: "#!/bin/sh\nexit 3\n"},
		{Path: "/sbin/init", Content: "#!/bin/sh\nsleep 1000 & while :; do wait; done\n"},
	}
	mustStart(t, m, spec, func(_ context.Context, waiting Waiting) error {
		for _, file := range spec.Root.Files {
			if err := os.Chmod(fmt.Sprintf("/proc/%d/root%s", waiting.Leader, file.Path), 0o755); err != nil {
				return err
			}
		}
		return nil
	})
	awaitUp(t, m, spec)
	var texts []string
	begin := time.Now()
	must.NoError(t, m.Stop(t.Context(), spec.Machine, spec.Mode, machine.Halt, 3*time.Second, func(text string) { texts = append(texts, text) }))
	must.Greater(t, 3*time.Second, time.Since(begin))
	must.SliceLen(t, 1, texts)
	must.StrContains(t, texts[0], "exit status 3")
	must.True(t, strings.Contains(texts[0], "/busybox"), must.Sprint(texts))
	must.Eq(t, Exit{Code: 1}, mustWait(t, m, spec.Machine))
}
