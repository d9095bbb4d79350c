package quota

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"unsafe"

	"github.com/klauspost/compress/zstd"
	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"

	"nomad-driver-nspawn/e2e/host/hosttest"
	"nomad-driver-nspawn/nspawn/tree"
)

// mountImage mounts a disk image and returns the mount point. The kernel frees the loop
// device together with the mount.
func mountImage(t *testing.T, image, options string) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "mounted")
	must.NoError(t, os.Mkdir(dir, 0o755))
	run(t, "mount", "-o", "loop,"+options, image, dir)
	t.Cleanup(func() { run(t, "umount", dir) })
	return dir
}

func run(t *testing.T, command ...string) {
	t.Helper()
	out, err := exec.Command(command[0], command[1:]...).CombinedOutput()
	must.NoError(t, err, must.Sprint(string(out)))
}

// unpackImage returns an image of testdata. It was made with a program that is missing on
// the machines and hosts that run the tests: `mkfs.btrfs -M -m single -d single` on 48
// MiB, and `mkfs.xfs --unsupported` (which is needed for such a small size) on 32 MiB.
func unpackImage(t *testing.T, name string) string {
	hosttest.RequireRoot(t)
	packed, err := os.Open("testdata/" + name + ".img.zst")
	must.NoError(t, err)
	defer packed.Close()
	unpack, err := zstd.NewReader(packed)
	must.NoError(t, err)
	defer unpack.Close()
	image, err := os.Create(filepath.Join(t.TempDir(), "image"))
	must.NoError(t, err)
	defer image.Close()
	_, err = io.Copy(image, unpack)
	must.NoError(t, err)
	return image.Name()
}

// mountOverlay mounts an overlay that writes below rw, and returns the mount point. Some
// quotas do not bind root itself, but do bind root in an overlay.
func mountOverlay(t *testing.T, lower, rw string) string {
	t.Helper()
	must.NoError(t, os.MkdirAll(rw+"/upper", 0o755))
	must.NoError(t, os.MkdirAll(rw+"/work", 0o755))
	target := t.TempDir()
	must.NoError(t, unix.Mount("overlay", target, "overlay", 0, fmt.Sprintf("lowerdir=%s,upperdir=%s/upper,workdir=%s/work", lower, rw, rw)))
	return target
}

func enableQgroups(t *testing.T, dir string) {
	file, err := os.Open(dir)
	must.NoError(t, err)
	defer file.Close()
	enable := struct{ command, status uint64 }{command: 1} // BTRFS_QUOTA_CTL_ENABLE
	must.NoError(t, ioctl(file.Fd(), 0xc0109428 /* BTRFS_IOC_QUOTA_CTL */, unsafe.Pointer(&enable)))
}

func TestLimitByQgroup(t *testing.T) {
	dir := mountImage(t, unpackImage(t, "btrfs"), "rw")
	_, err := Detect(dir)
	must.ErrorContains(t, err, "btrfs quota enable")
	enableQgroups(t, dir)
	kind, err := Detect(dir)
	must.NoError(t, err)
	must.EqOp(t, Qgroup, kind)

	rw := dir + "/machines/web"
	must.NoError(t, Make(rw, 8<<20, testID))
	must.Eq(t, "0:0 0700", hosttest.Owner(t, rw))
	must.Error(t, Make(rw, 8<<20, testID)) // it exists already
	target := mountOverlay(t, t.TempDir(), rw)
	must.ErrorIs(t, hosttest.Fill(target+"/big", 16<<20), unix.EDQUOT)
	must.NoError(t, hosttest.Fill(dir+"/machines/other", 16<<20))
	must.NoError(t, unix.Unmount(target, 0))

	for range 2 { // as after an interruption
		must.NoError(t, End(rw))
	}
	must.NoError(t, hosttest.Fill(rw+"/more", 10<<20))
	must.NoError(t, tree.Remove(rw))
	must.DirNotExists(t, rw)
	must.NoError(t, End(rw)) // there is no limit
	must.NoError(t, End(dir+"/machines"))
}

func TestNoQuota(t *testing.T) {
	hosttest.RequireRoot(t)
	image := filepath.Join(t.TempDir(), "image")
	run(t, "mkfs.ext4", "-q", image, "16M")
	memory := t.TempDir()
	must.NoError(t, unix.Mount("tmpfs", memory, "tmpfs", 0, ""))
	t.Cleanup(func() { must.NoError(t, unix.Unmount(memory, 0)) })
	for dir, want := range map[string]string{
		mountImage(t, image, "rw"): ", ext4, does not limit directories: enable its project quotas (tune2fs -O quota,project",
		memory:                     ", tmpfs, does not limit directories: mount ext4 or xfs with prjquota, or btrfs",
	} {
		kind, err := Detect(dir)
		must.EqOp(t, "", kind)
		must.ErrorContains(t, err, "the file system below "+dir+want)
		t.Log(err)
		must.ErrorContains(t, Make(dir+"/machines/web", 16<<20, testID), want)
		must.DirNotExists(t, dir+"/machines/web")
		must.NoError(t, os.Mkdir(dir+"/machines/web", 0o700))
		must.NoError(t, End(dir+"/machines/web"))
	}
}
