package parts

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/shoenig/test/must"

	"nomad-driver-nspawn/nspawn/machine"
)

// TestRunDirs checks that only real directories are shown, and not too many.
func TestRunDirs(t *testing.T) {
	root := t.TempDir()
	for _, name := range []string{"host", "systemd", "postgresql", "lock/subsys"} {
		must.NoError(t, os.MkdirAll(filepath.Join(root, "run", name), 0o755))
	}
	must.NoError(t, os.WriteFile(filepath.Join(root, "run/utmp"), nil, 0o644))
	must.NoError(t, os.Symlink("/etc", filepath.Join(root, "run/link")))
	names, err := runDirs(root)
	must.NoError(t, err)
	must.Eq(t, []string{"lock", "postgresql"}, names)

	for n := range 2 * maxRunDirs {
		must.NoError(t, os.Mkdir(filepath.Join(root, "run", fmt.Sprint("many", n)), 0o755))
	}
	names, err = runDirs(root)
	must.NoError(t, err)
	must.SliceLen(t, maxRunDirs, names)
}

// TestRunBinds checks that what a job mounts in /run goes before what the image has there.
func TestRunBinds(t *testing.T) {
	names := []string{"covered", "device", "inside", "memory", "plain"}
	s := machine.Spec{
		Binds:   []machine.Bind{{Source: "/srv/a", Destination: "/run/covered"}, {Source: "/srv/b", Destination: "/run/inside/b"}},
		Devices: []machine.Device{{Destination: "/run/device/null"}},
		Root:    machine.Root{Tmpfs: []machine.Tmpfs{{Destination: "/run/memory"}}},
	}
	must.Eq(t, []machine.Bind{
		{Source: "/run/inside", Destination: "/run/inside", InRoot: true},
		{Source: "/run/plain", Destination: "/run/plain", InRoot: true},
	}, runBinds(s, names))
	s.Root.Tmpfs = []machine.Tmpfs{{Destination: "/run"}}
	must.SliceEmpty(t, runBinds(s, names))
}
