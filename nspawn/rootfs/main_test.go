package rootfs

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"

	"nomad-driver-nspawn/e2e/host/hosttest"
	"nomad-driver-nspawn/nspawn/mounts"
)

// TestMain runs the tests in a mount namespace of their own. In a disposable host that is
// not necessary, and its systemd must see the mounts.
func TestMain(m *testing.M) {
	hosttest.RunPrivateOutside(m, unix.CLONE_NEWNS)
}

// newOverlay returns an overlay over one layer: a root of mode 0751 with etc/shadow, 0640
// of 0:42, and var/www of 33:33. Its mounts are removed at the end of the test.
func newOverlay(t *testing.T, base uint32) Overlay {
	t.Helper()
	hosttest.RequireRoot(t)
	top := t.TempDir()
	lower := filepath.Join(top, "lower")
	hosttest.Write(t, filepath.Join(lower, "etc/shadow"), "secret", 0o640, 0, 42)
	must.NoError(t, os.MkdirAll(filepath.Join(lower, "var/www"), 0o755))
	must.NoError(t, os.Chown(filepath.Join(lower, "var/www"), 33, 33))
	must.NoError(t, os.Chmod(lower, 0o751))
	o := Overlay{
		Lower:   []string{lower},
		RW:      filepath.Join(top, "rw"),
		Target:  filepath.Join(top, "merged"),
		UIDBase: base,
	}
	t.Cleanup(func() { must.NoError(t, mounts.Unmount(o.Target)) })
	return o
}
