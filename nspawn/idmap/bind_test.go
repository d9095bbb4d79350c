package idmap

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"

	"nomad-driver-nspawn/e2e/host/hosttest"
	"nomad-driver-nspawn/nspawn/mounts"
)

func TestMountBinds(t *testing.T) {
	hosttest.RequireRoot(t)
	source, target := filepath.Join(t.TempDir(), "source"), t.TempDir()
	hosttest.Write(t, filepath.Join(source, "logs/out"), "x", 0o640, 33, 0)
	must.NoError(t, os.Chmod(source, 0o751))
	mountShared(t, source) // as all of a host's file systems are

	must.NoError(t, MountBinds(testBase, []Bind{{Source: source, Target: target}}))
	t.Cleanup(func() { must.NoError(t, mounts.Unmount(target)) })
	must.Eq(t, hosttest.Owned(testBase, testBase, 0o751), hosttest.Owner(t, target))
	must.Eq(t, hosttest.Owned(testBase+33, testBase, 0o640), hosttest.Owner(t, target+"/logs/out"))

	// What the machine's root writes is host root's.
	made := filepath.Join(target, "made")
	must.NoError(t, os.Mkdir(made, 0o700))
	must.NoError(t, os.Chown(made, int(testBase), int(testBase)))
	must.Eq(t, "0:0 0700", hosttest.Owner(t, filepath.Join(source, "made")))

	// A mount in it is no mount in the source.
	must.NoError(t, unix.Mount("tmpfs", made, "tmpfs", 0, ""))
	must.StrNotContains(t, strings.Join(hosttest.Mounts(t), "\n"), " "+source+"/made ")
	must.NoError(t, unix.Unmount(made, 0))

	must.NoError(t, mounts.Unmount(target))
	must.StrNotContains(t, strings.Join(hosttest.Mounts(t), "\n"), target)
	must.Eq(t, hosttest.Owned(33, 0, 0o640), hosttest.Owner(t, source+"/logs/out"))
}

func TestMountBindsThatAreNotThere(t *testing.T) {
	hosttest.RequireRoot(t)
	before := hosttest.Mounts(t)
	for _, bind := range []Bind{{"/none", t.TempDir()}, {t.TempDir(), "/none"}} {
		must.ErrorIs(t, MountBinds(testBase, []Bind{bind}), os.ErrNotExist)
	}
	must.Eq(t, before, hosttest.Mounts(t))
}

// mountShared makes a mount of dir, and mounts below it appear in its copies, and
// the other way round.
func mountShared(t *testing.T, dir string) {
	t.Helper()
	must.NoError(t, unix.Mount(dir, dir, "", unix.MS_BIND, ""))
	t.Cleanup(func() { must.NoError(t, unix.Unmount(dir, unix.MNT_DETACH)) })
	must.NoError(t, unix.Mount("", dir, "", unix.MS_SHARED, ""))
}
