package rootfs

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"

	"nomad-driver-nspawn/e2e/host/hosttest"
)

// TestMain runs the tests in a mount namespace of their own. In a disposable
// host there is no need, and its systemd must see the mounts.
func TestMain(m *testing.M) {
	hosttest.RunPrivateOutside(m, unix.CLONE_NEWNS)
}

// newOverlay returns an overlay over one layer: a root of mode 0751 with
// etc/shadow, 0640 of 0:42, and var/www of 33:33. What is mounted is taken away
// at the end of the test.
func newOverlay(t *testing.T, base uint32) Overlay {
	t.Helper()
	hosttest.RequireRoot(t)
	top := t.TempDir()
	lower := filepath.Join(top, "lower")
	write(t, filepath.Join(lower, "etc/shadow"), "secret", 0o640, 0, 42)
	must.NoError(t, os.MkdirAll(filepath.Join(lower, "var/www"), 0o755))
	must.NoError(t, os.Chown(filepath.Join(lower, "var/www"), 33, 33))
	must.NoError(t, os.Chmod(lower, 0o751))
	o := Overlay{
		Lower:   []string{lower},
		RW:      filepath.Join(top, "rw"),
		Target:  filepath.Join(top, "merged"),
		UIDBase: base,
	}
	t.Cleanup(func() { must.NoError(t, Unmount(o.Target)) })
	return o
}

func write(t *testing.T, path, text string, mode os.FileMode, uid, gid int) {
	t.Helper()
	must.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
	must.NoError(t, os.WriteFile(path, []byte(text), mode))
	must.NoError(t, os.Chown(path, uid, gid))
	must.NoError(t, os.Chmod(path, mode))
}

// owner returns "uid:gid mode" of what is at path.
func owner(t *testing.T, path string) string {
	t.Helper()
	var stat unix.Stat_t
	must.NoError(t, unix.Lstat(path, &stat), must.Sprint(path))
	return fmt.Sprintf("%d:%d %04o", stat.Uid, stat.Gid, stat.Mode&0o7777)
}

func owned(uid, gid uint32, mode int) string {
	return fmt.Sprintf("%d:%d %04o", uid, gid, mode)
}

// mounts returns the mount table, without the IDs, which are of no matter.
func mounts(t *testing.T) []string {
	t.Helper()
	text, err := os.ReadFile("/proc/self/mountinfo")
	must.NoError(t, err)
	var lines []string
	for line := range strings.Lines(string(text)) {
		lines = append(lines, strings.Join(strings.Fields(line)[3:], " "))
	}
	return lines
}
