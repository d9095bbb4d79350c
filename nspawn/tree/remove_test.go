package tree

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"testing"

	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"

	"nomad-driver-nspawn/e2e/host/hosttest"
)

func TestRemove(t *testing.T) {
	top := t.TempDir()
	must.NoError(t, Remove(top+"/missing"))
	hosttest.Write(t, top+"/dir/a/b/c", "", 0, os.Getuid(), os.Getgid())
	must.NoError(t, os.Chmod(top+"/dir/a", 0o500))
	if os.Getuid() != 0 {
		must.ErrorIs(t, Remove(top+"/dir"), unix.EACCES)
		must.NoError(t, os.Chmod(top+"/dir/a", 0o700))
	}
	must.NoError(t, Remove(top+"/dir/"))
	must.DirNotExists(t, top+"/dir")
}

func TestRemoveFollowsNoLink(t *testing.T) {
	top := t.TempDir()
	precious := filepath.Join(top, "precious")
	hosttest.Write(t, precious+"/file", "kept", 0o644, os.Getuid(), os.Getgid())
	dir := filepath.Join(top, "dir")
	must.NoError(t, os.MkdirAll(dir+"/sub", 0o755))
	for name, target := range map[string]string{"abs": precious, "sub/rel": "../../precious", "sub/file": precious + "/file", "dead": "/missing"} {
		must.NoError(t, os.Symlink(target, filepath.Join(dir, name)))
	}
	must.NoError(t, os.Link(precious+"/file", dir+"/hard"))
	must.NoError(t, Remove(dir))
	must.FileContains(t, precious+"/file", "kept")

	must.NoError(t, os.Symlink(precious, dir))
	must.Error(t, Remove(dir))
	must.Error(t, Remove(dir+"/"))
	must.FileContains(t, precious+"/file", "kept")
}

func TestRemoveWeirdEntries(t *testing.T) {
	hosttest.RequireRoot(t)
	dir := filepath.Join(t.TempDir(), "dir")
	must.NoError(t, os.MkdirAll(dir+"/sub/immutable/in it", 0o000))
	hosttest.Write(t, dir+"/sub/immutable/file", "", 0, 65536, 65536)
	hosttest.Write(t, dir+"/sub/append", "", 0, 0, 0)
	must.NoError(t, unix.Mkfifo(dir+"/sub/fifo", 0o600))
	must.NoError(t, unix.Mknod(dir+"/sub/whiteout", unix.S_IFCHR, 0))
	must.NoError(t, unix.Mknod(dir+"/sub/disk", unix.S_IFBLK, int(unix.Mkdev(254, 0))))
	must.NoError(t, os.WriteFile(dir+"/sub/new\nline \xff", nil, 0))
	for i := range 20 { // names that Remove would use itself, taken by files and directories
		must.NoError(t, os.MkdirAll(fmt.Sprintf("%s/dir-%d/x/y", dir, i), 0o755))
		if taken := fmt.Sprintf("%s/.removing-%d", dir, i); i%2 == 1 {
			must.NoError(t, os.WriteFile(taken, nil, 0))
		} else {
			must.NoError(t, os.MkdirAll(taken+"/x/y", 0o755))
		}
	}
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: dir + "/sub/socket"})
	must.NoError(t, err)
	defer listener.Close()
	for path, flag := range map[string]int{
		"/sub/immutable/file": flagImmutable, "/sub/append": flagAppendOnly,
		"/sub/immutable/in it": flagImmutable, "/sub/immutable": flagImmutable, "/sub": flagAppendOnly, "": flagImmutable,
	} {
		setFlag(t, dir+path, flag)
	}
	must.ErrorIs(t, os.Remove(dir+"/sub/append"), unix.EPERM)
	must.NoError(t, Remove(dir))
	must.DirNotExists(t, dir)

	must.NoError(t, os.Mkdir(dir, 0o755))
	setFlag(t, dir, flagImmutable)
	must.NoError(t, Remove(dir))
	must.DirNotExists(t, dir)
}

func setFlag(t *testing.T, path string, flag int) {
	t.Helper()
	file, err := os.Open(path)
	must.NoError(t, err)
	defer file.Close()
	if err := unix.IoctlSetPointerInt(int(file.Fd()), unix.FS_IOC_SETFLAGS, flag); err != nil {
		t.Skipf("SKIPPED: no file attributes on this file system: %v", err)
	}
}

// TestRemoveDeep nests directories deeper than a path can express, and than descriptors
// could be held open.
func TestRemoveDeep(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "dir")
	must.NoError(t, os.Mkdir(dir, 0o700))
	at, err := unix.Open(dir, unix.O_PATH|unix.O_CLOEXEC, 0)
	must.NoError(t, err)
	for range 5_000 {
		must.NoError(t, unix.Mkdirat(at, "d", 0o700))
		next, err := unix.Openat(at, "d", unix.O_PATH|unix.O_CLOEXEC, 0)
		must.NoError(t, err)
		must.NoError(t, unix.Close(at))
		at = next
	}
	must.NoError(t, unix.Close(at))
	must.NoError(t, Remove(dir))
	must.DirNotExists(t, dir)
}

func TestRemoveKeepsOutOfMounts(t *testing.T) {
	hosttest.RequireRoot(t)
	top := t.TempDir()
	precious := filepath.Join(top, "precious")
	hosttest.Write(t, precious+"/sub/file", "kept", 0o644, 0, 0)
	for _, at := range []string{"/dir", "/dir/a", "/dir/a/b \\040\n/c"} {
		t.Run(at, func(t *testing.T) {
			must.NoError(t, os.MkdirAll(top+at, 0o755))
			must.NoError(t, os.WriteFile(top+"/dir/untouched", nil, 0o600))
			must.NoError(t, unix.Mount(precious, top+at, "", unix.MS_BIND, ""))
			err := Remove(top + "/dir")
			must.NoError(t, unix.Unmount(top+at, 0))
			must.ErrorIs(t, err, unix.EBUSY)
			must.ErrorContains(t, err, top+at+" is still mounted")
			must.FileExists(t, top+"/dir/untouched")
			must.FileContains(t, precious+"/sub/file", "kept")
		})
	}
	must.NoError(t, Remove(top+"/dir"))
}
