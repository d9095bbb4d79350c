package stage

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"

	"nomad-driver-nspawn/e2e/host/hosttest"
)

func TestMain(m *testing.M) {
	hosttest.RunPrivateOutside(m, unix.CLONE_NEWNS)
}

func newPinned(t *testing.T) string {
	hosttest.RequireRoot(t)
	pins := filepath.Join(t.TempDir(), "pins")
	must.NoError(t, PrepareDir(pins))
	t.Cleanup(func() { must.NoError(t, unix.Unmount(pins, unix.MNT_DETACH)) })
	must.NoError(t, PrepareDir(pins)) // which is nothing more
	dir := t.TempDir()
	must.NoError(t, os.Mkdir(dir+"/mounts", 0o700))
	must.NoError(t, os.MkdirAll("/run/systemd/nspawn", 0o755))
	s, err := New(dir, pins+"/one")
	must.NoError(t, err)
	defer s.Close()
	must.NoError(t, s.Seal())
	return pins + "/one"
}

func TestHostPin(t *testing.T) {
	for range 20 {
		pin := newPinned(t)
		must.NoError(t, Unpin(pin))
		must.NoError(t, Unpin(pin))
	}
}
