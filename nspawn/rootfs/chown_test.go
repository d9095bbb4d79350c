package rootfs

import (
	"context"
	"encoding/binary"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"

	"nomad-driver-nspawn/e2e/host/hosttest"
	"nomad-driver-nspawn/nspawn/idmap"
	"nomad-driver-nspawn/nspawn/mounts"
	"nomad-driver-nspawn/nspawn/tree"
)

// capNetRaw is the stored form of cap_net_raw=ep: revision 2 for the host's root, or with
// the ID of a root, revision 3 for the root of a user namespace.
func capNetRaw(root ...uint32) []byte {
	words := append([]uint32{2<<24 | 1, 1 << unix.CAP_NET_RAW, 0, 0, 0}, root...)
	words[0] += uint32(len(root)) << 24
	return littleEndian(words)
}

// acl is the stored form of u::rwx, u:UID:r-x, g::r-x, g:GID:r-x, m::r-x, o::r-x.
func acl(uid, gid uint32) []byte {
	const none = 0xffffffff
	return littleEndian([]uint32{2, 7<<16 | 1, none, 5<<16 | 2, uid, 5<<16 | 4, none, 5<<16 | 8, gid, 5<<16 | 0x10, none, 5<<16 | 0x20, none})
}

func littleEndian(words []uint32) (data []byte) {
	for _, word := range words {
		data = binary.LittleEndian.AppendUint32(data, word)
	}
	return data
}

func attribute(t *testing.T, path, name string) []byte {
	value, err := getxattr(path, name)
	must.NoError(t, err, must.Sprint(path))
	return value
}

func TestShiftCapabilities(t *testing.T) {
	must.Eq(t, capNetRaw(base1), shiftCapabilities(capNetRaw(), base1))
	must.Eq(t, capNetRaw(base1), shiftCapabilities(capNetRaw(base1), base1))
	must.Eq(t, capNetRaw(base1+1000), shiftCapabilities(capNetRaw(base2+1000), base1))
	revision1 := littleEndian([]uint32{1<<24 | 1, 0, 0})
	must.Eq(t, revision1, shiftCapabilities(revision1, base1))
}

// newRich returns an overlay whose layer has every kind of file for which owners matter,
// and the directory of that layer.
func newRich(t *testing.T) (o Overlay, files string) {
	o = newOverlay(t, base1)
	files = o.Lower[0]
	hosttest.Write(t, files+"/bin/su", strings.Repeat("x", 1<<20), 0o6755, 0, 0)
	must.NoError(t, os.Chmod(files+"/bin/su", 0o755|os.ModeSetuid|os.ModeSetgid))
	must.NoError(t, os.Link(files+"/bin/su", files+"/bin/link"))
	hosttest.Write(t, files+"/bin/ping", "", 0o755, 0, 0)
	must.NoError(t, unix.Setxattr(files+"/bin/ping", "security.capability", capNetRaw(), 0))
	must.NoError(t, os.Symlink("/etc/shadow", files+"/bin/symlink"))
	must.NoError(t, os.Lchown(files+"/bin/symlink", 5, 6))
	must.NoError(t, unix.Mkfifo(files+"/bin/fifo", 0o600))
	must.NoError(t, unix.Mknod(files+"/bin/null", unix.S_IFCHR|0o600, 1<<8|3))
	hosttest.Write(t, files+"/bin/other", "", 0o600, int(base2)+7, int(base2)+8) // it once belonged to another machine
	must.NoError(t, os.Mkdir(files+"/srv", 0o755))
	for _, name := range []string{"system.posix_acl_access", "system.posix_acl_default"} {
		must.NoError(t, unix.Setxattr(files+"/srv", name, acl(33, 4), 0))
	}
	must.NoError(t, os.Chmod(files+"/srv", 0o755|os.ModeSetgid|os.ModeSticky))
	return o, files
}

func TestMountChowned(t *testing.T) {
	o, files := newRich(t)
	before := hosttest.Mounts(t)
	must.NoError(t, o.MountChowned(t.Context()))
	for name, want := range map[string]string{
		".":           hosttest.Owned(base1, base1, 0o751),
		"etc/shadow":  hosttest.Owned(base1, base1+42, 0o640),
		"var/www":     hosttest.Owned(base1+33, base1+33, 0o755),
		"bin/su":      hosttest.Owned(base1, base1, 0o6755),
		"bin/link":    hosttest.Owned(base1, base1, 0o6755),
		"bin/symlink": hosttest.Owned(base1+5, base1+6, 0o777),
		"bin/fifo":    hosttest.Owned(base1, base1, 0o600),
		"bin/null":    hosttest.Owned(base1, base1, 0o600),
		"bin/other":   hosttest.Owned(base1+7, base1+8, 0o600),
		"srv":         hosttest.Owned(base1, base1, 0o3755),
	} {
		must.Eq(t, want, hosttest.Owner(t, filepath.Join(o.Target, name)), must.Sprint(name))
	}
	must.Eq(t, capNetRaw(base1), attribute(t, o.Target+"/bin/ping", "security.capability"))
	for _, name := range []string{"system.posix_acl_access", "system.posix_acl_default"} {
		must.Eq(t, acl(base1+33, base1+4), attribute(t, o.Target+"/srv", name))
	}

	// The image remains unchanged.
	must.Eq(t, "0:0 0751", hosttest.Owner(t, files))
	must.Eq(t, "0:0 6755", hosttest.Owner(t, files+"/bin/su"))
	must.Eq(t, capNetRaw(), attribute(t, files+"/bin/ping", "security.capability"))
	must.Eq(t, acl(33, 4), attribute(t, files+"/srv", "system.posix_acl_access"))

	// The contents of a file are copied only when the file is written to.
	var stat unix.Stat_t
	must.NoError(t, unix.Stat(o.RW+"/upper/bin/su", &stat))
	must.Eq(t, 1<<20, stat.Size)
	must.Less(t, 16, stat.Blocks)
	file, err := os.OpenFile(o.Target+"/bin/su", os.O_WRONLY|os.O_APPEND, 0)
	must.NoError(t, err)
	_, err = file.WriteString("y")
	must.NoError(t, err)
	must.NoError(t, file.Close())
	must.FileContains(t, o.Target+"/bin/su", strings.Repeat("x", 1<<20)+"y")
	must.FileContains(t, files+"/bin/su", strings.Repeat("x", 1<<20))

	must.NoError(t, mounts.Unmount(o.Target))
	must.Eq(t, before, hosttest.Mounts(t))
	must.NoError(t, tree.Remove(o.RW))
}

// An image on overlayfs is one that can never be ID-mapped, and is easy to make.
func TestMountUnmappable(t *testing.T) {
	o := newOverlay(t, base1)
	o.Lower = []string{mountedOverlay(t)}
	before := hosttest.Mounts(t)
	err := o.Mount()
	must.ErrorIs(t, err, idmap.ErrUnmappable)
	must.ErrorContains(t, err, o.Lower[0]+": cannot be ID-mapped")
	must.NoError(t, o.MountChowned(t.Context()))
	must.Eq(t, hosttest.Owned(base1, base1+42, 0o640), hosttest.Owner(t, o.Target+"/etc/shadow"))
	must.FileContains(t, o.Target+"/etc/shadow", "secret")
	must.NoError(t, mounts.Unmount(o.Target))

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	must.ErrorIs(t, o.MountChowned(ctx), context.Canceled)
	o.RW = mountedOverlay(t) + "/rw"
	must.ErrorContains(t, o.MountChowned(t.Context()), "not on overlay")
	must.Eq(t, len(before)+1, len(hosttest.Mounts(t))) // the mount of the last RW
}

// TestHandOver checks that a directory is handed over with its contents, any number of
// times, but without mounts in it.
func TestHandOver(t *testing.T) {
	hosttest.RequireRoot(t)
	dir := t.TempDir()
	hosttest.Write(t, dir+"/secrets/token", "", 0o600, 0, 0)
	hosttest.Write(t, dir+"/secrets/user", "", 0o600, 1000, 1001)
	must.NoError(t, os.Symlink("/etc/passwd", dir+"/secrets/passwd"))
	must.NoError(t, os.Mkdir(dir+"/mount", 0o755))
	must.NoError(t, unix.Mount("tmpfs", dir+"/mount", "tmpfs", 0, "mode=0755"))
	t.Cleanup(func() { must.NoError(t, mounts.Unmount(dir+"/mount")) })
	file, err := mounts.Open(dir, "")
	must.NoError(t, err)
	defer file.Close()
	for range 2 {
		must.NoError(t, HandOver(t.Context(), file, base1))
		must.Eq(t, hosttest.Owned(base1, base1, 0o600), hosttest.Owner(t, dir+"/secrets/token"))
		must.Eq(t, hosttest.Owned(base1+1000, base1+1001, 0o600), hosttest.Owner(t, dir+"/secrets/user"))
		must.Eq(t, hosttest.Owned(base1, base1, 0o777), hosttest.Owner(t, dir+"/secrets/passwd"))
		must.Eq(t, "0:0 0755", hosttest.Owner(t, dir+"/mount"))
	}
	must.Eq(t, "0:0 0644", hosttest.Owner(t, "/etc/passwd"))
}
