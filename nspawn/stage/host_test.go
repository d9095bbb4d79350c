package stage

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

func TestMain(m *testing.M) {
	hosttest.RunPrivateOutside(m, unix.CLONE_NEWNS)
}

func newPins(t *testing.T) string {
	t.Helper()
	hosttest.RequireRoot(t)
	pins := filepath.Join(t.TempDir(), "pins")
	must.NoError(t, PrepareDir(pins))
	t.Cleanup(func() { must.NoError(t, unix.Unmount(pins, unix.MNT_DETACH)) })
	must.NoError(t, PrepareDir(pins)) // a second call does nothing
	must.NoError(t, os.MkdirAll("/run/systemd/nspawn", 0o755))
	return pins
}

func mustNew(t *testing.T, pin string) *Stage {
	t.Helper()
	dir := t.TempDir()
	must.NoError(t, os.Mkdir(dir+"/mounts", 0o700))
	s, err := New(filepath.Dir(pin))
	must.NoError(t, err)
	must.NoError(t, s.Pin(dir, pin))
	return s
}

func mountTable(t *testing.T) string {
	t.Helper()
	table, err := os.ReadFile("/proc/self/mountinfo")
	must.NoError(t, err)
	return string(table)
}

// TestHostPin checks that stages appear in none of the mount lists that systemd reads.
func TestHostPin(t *testing.T) {
	pins := newPins(t)
	before := mountTable(t)
	for range 20 {
		pin := pins + "/one"
		s := mustNew(t, pin)
		must.NoError(t, s.Seal())
		must.EqOp(t, before, mountTable(t))
		s.Close()
		must.NoError(t, Unpin(pin))
		must.NoError(t, Unpin(pin))
	}
	must.EqOp(t, before, mountTable(t))
}

// TestHostCopyOfTheKeeper checks that a stage contains nothing that is mounted on the
// host.
func TestHostCopyOfTheKeeper(t *testing.T) {
	pins := newPins(t)
	keeper, err := os.Open(KeeperOf(pins + "/any"))
	must.NoError(t, err)
	defer keeper.Close()
	thread, err := newWorker()
	must.NoError(t, err)
	defer thread.end()
	must.NoError(t, thread.do(func() error { return enter(keeper) }))
	own, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", thread.namespaces.Fd()))
	must.NoError(t, err)
	table, err := os.ReadFile(filepath.Join(filepath.Dir(own), "mountinfo"))
	must.NoError(t, err)
	must.EqOp(t, 1, strings.Count(string(table), "\n"), must.Sprint(string(table)))
}

// TestHostUnpin checks that the namespace can be entered while it is pinned, and that its
// mounts end with the pin.
func TestHostUnpin(t *testing.T) {
	pin := newPins(t) + "/one"
	s := mustNew(t, pin)
	must.NoError(t, s.Do(func() error { return unix.Mount("tmpfs", "/tmp", "tmpfs", 0, "") }))
	watch, err := unix.InotifyInit1(unix.IN_CLOEXEC)
	must.NoError(t, err)
	defer unix.Close(watch)
	must.NoError(t, s.Do(func() error {
		_, err := unix.InotifyAddWatch(watch, "/tmp", unix.IN_UNMOUNT)
		return err
	}))
	s.Close()
	again, err := newWorker()
	must.NoError(t, err)
	must.NoError(t, again.do(func() error {
		for _, namespace := range []string{KeeperOf(pin), "/one"} {
			file, err := os.Open(namespace)
			if err != nil {
				return err
			}
			defer file.Close()
			if err := enter(file); err != nil {
				return err
			}
		}
		_, err := os.Stat("/run/systemd/nspawn")
		return err
	}))
	again.end()
	must.NoError(t, Unpin(pin))
	n, err := unix.Poll([]unix.PollFd{{Fd: int32(watch), Events: unix.POLLIN}}, 10_000)
	must.NoError(t, err)
	must.EqOp(t, 1, n, must.Sprint("its mounts are still there"))
}
