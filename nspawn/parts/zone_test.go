package parts

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/shoenig/test/must"

	"nomad-driver-nspawn/nspawn/dirs"
	"nomad-driver-nspawn/nspawn/machine"
)

func TestZone(t *testing.T) {
	m := &Maker{dirs: dirs.Dirs{Run: t.TempDir()}}
	hosts := func(name string) string {
		text, err := os.ReadFile(m.dirs.Named(name, machine.HostsFile))
		must.NoError(t, err)
		return string(text)
	}
	add := func(name string) {
		path := m.dirs.Named(name, machine.HostsFile)
		must.NoError(t, os.MkdirAll(filepath.Dir(path), 0o700))
		must.NoError(t, os.WriteFile(path, []byte("127.0.0.1 localhost\n"), 0o600))
	}
	const others = "127.0.0.1 localhost\n# Other containers of the zone:\n"
	for _, name := range []string{"a", "b", "c", "elsewhere"} {
		add(name)
	}
	must.NoError(t, m.JoinZone("a", "front", "192.0.2.1 web\n2001:db8::1 web\n"))
	must.NoError(t, m.JoinZone("b", "front", "192.0.2.2 db\n"))
	must.NoError(t, m.JoinZone("elsewhere", "back", "192.0.2.9 db\n"))
	must.NoError(t, m.JoinZone("c", "front", "192.0.2.3 db\n"))
	must.Eq(t, others+"192.0.2.2 db\n", hosts("a"))
	must.Eq(t, others+"192.0.2.1 web\n2001:db8::1 web\n192.0.2.3 db\n", hosts("b"))
	must.Eq(t, "127.0.0.1 localhost\n", hosts("elsewhere"))

	// A member with another address keeps its place.
	must.NoError(t, m.JoinZone("b", "front", "192.0.2.20 db\n"))
	must.Eq(t, others+"192.0.2.20 db\n", hosts("a"))

	// One whose files are gone, as a removal begins, does not hold up others.
	must.NoError(t, os.RemoveAll(m.dirs.Machine("c")))
	must.NoError(t, m.leaveZone(t.Context(), "b"))
	must.NoError(t, m.leaveZone(t.Context(), "b"))
	must.Eq(t, others+"192.0.2.3 db\n", hosts("a"))
	must.NoError(t, m.leaveZone(t.Context(), "c"))
	must.Eq(t, "127.0.0.1 localhost\n", hosts("a"))

	must.NoError(t, m.leaveZone(t.Context(), "a"))
	must.NoError(t, m.leaveZone(t.Context(), "elsewhere"))
	left, err := os.ReadDir(m.dirs.Zones())
	must.NoError(t, err)
	must.SliceEmpty(t, left)
}
