package quota

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"
	"unsafe"

	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"

	"nomad-driver-nspawn/e2e/host/hosttest"
	"nomad-driver-nspawn/e2e/vm/vmtest"
	"nomad-driver-nspawn/nspawn/tree"
)

// The tests in this file need a kernel with all kinds of quotas.

// projectImages are file systems of 32 MiB with project quotas, by type.
func projectImages(t *testing.T) map[string]string {
	vmtest.Require(t)
	ext4 := filepath.Join(t.TempDir(), "ext4")
	run(t, "mkfs.ext4", "-q", "-O", "quota,project", ext4, "32M")
	return map[string]string{"ext4": ext4, "xfs": unpackImage(t, "xfs")}
}

func TestVMLimitByProject(t *testing.T) {
	for name, image := range projectImages(t) {
		t.Run(name, func(t *testing.T) {
			dir := mountImage(t, image, "prjquota")
			kind, err := Detect(dir)
			must.NoError(t, err)
			must.EqOp(t, Projects, kind)

			rw := dir + "/machines/web"
			must.NoError(t, Make(rw, 2<<20, testID))
			must.Eq(t, "0:0 0700", hosttest.Owner(t, rw))
			target := mountOverlay(t, t.TempDir(), rw)
			must.Eq(t, 2<<20, sizeOf(t, target))
			mustBeFull(t, hosttest.Fill(target+"/big", 4<<20))
			must.NoError(t, hosttest.Fill(dir+"/machines/other", 4<<20)) // in no project
			must.NoError(t, os.Remove(target+"/big"))
			must.NoError(t, hosttest.Fill(target+"/fits", 1<<20))
			mustBeFull(t, makeFiles(target, 1000))

			must.NoError(t, unix.Unmount(target, 0))
			must.Greater(t, 1<<20, quotaOf(t, dir, testID).space)
			for range 2 { // as after an interruption
				must.NoError(t, End(rw))
			}
			must.NoError(t, tree.Remove(rw))
			awaitNoQuota(t, dir, testID)
		})
	}
}

// sizeOf returns the size of a file system as df shows it.
func sizeOf(t *testing.T, dir string) int {
	var stat unix.Statfs_t
	must.NoError(t, unix.Statfs(dir, &stat))
	return int(stat.Blocks) * int(stat.Bsize)
}

// mustBeFull checks for the errors that ext4 and xfs return.
func mustBeFull(t *testing.T, err error) {
	t.Helper()
	must.True(t, errors.Is(err, unix.EDQUOT) || errors.Is(err, unix.ENOSPC), must.Sprint(err))
}

func makeFiles(dir string, count int) error {
	for i := range count {
		if err := os.WriteFile(fmt.Sprintf("%s/%d", dir, i), nil, 0o600); err != nil {
			return err
		}
	}
	return nil
}

// quotaOf returns the usage and limits of a project. The times at which limits were
// reached, and the mask of valid fields, do not matter.
func quotaOf(t *testing.T, dir string, project uint32) quota {
	t.Helper()
	file, err := os.Open(dir)
	must.NoError(t, err)
	defer file.Close()
	var q quota
	err = quotactl(file.Fd(), quotaGet, uintptr(project), unsafe.Pointer(&q))
	must.True(t, err == nil || errors.Is(err, unix.ENOENT), must.Sprint(err))
	q.blockTime, q.inodeTime, q.valid = 0, 0, 0
	return q
}

// awaitNoQuota waits until xfs has freed removed files, which it does later and without
// an event.
func awaitNoQuota(t *testing.T, dir string, project uint32) {
	t.Helper()
	deadline := time.Now().Add(time.Minute)
	for quotaOf(t, dir, project) != (quota{}) {
		must.True(t, time.Now().Before(deadline))
	}
}

// A directory that remained after a crash of the host still has its project when another
// machine gets its UIDs.
func TestVMProjectInUse(t *testing.T) {
	for name, image := range projectImages(t) {
		t.Run(name, func(t *testing.T) {
			dir := mountImage(t, image, "prjquota")
			left, next := dir+"/machines/left", dir+"/machines/next"
			must.NoError(t, Make(left, 1<<20, testID))
			must.NoError(t, Make(next, 2<<20, testID))
			must.NoError(t, End(left))
			must.NoError(t, tree.Remove(left))
			must.Eq(t, 2<<20, sizeOf(t, next))
			must.NoError(t, End(next))
			must.NoError(t, tree.Remove(next))
			awaitNoQuota(t, dir, testID+1)
		})
	}
}

// The operator may have limited all machines together.
func TestVMProjectOfOperator(t *testing.T) {
	for name, image := range projectImages(t) {
		t.Run(name, func(t *testing.T) {
			dir := mountImage(t, image, "prjquota")
			must.NoError(t, Make(dir+"/machines", 8<<20, 42))
			must.NoError(t, os.Mkdir(dir+"/machines/free", 0o700))
			must.NoError(t, End(dir+"/machines/free"))
			must.NoError(t, tree.Remove(dir+"/machines/free"))
			must.Eq(t, 8<<20, int(quotaOf(t, dir, 42).blockHard*quotaBlock))
		})
	}
}

// Without the mount option, ext4 counts but does not limit.
func TestVMProjectsNotEnforced(t *testing.T) {
	for name, image := range projectImages(t) {
		t.Run(name, func(t *testing.T) {
			dir := mountImage(t, image, "rw")
			_, err := Detect(dir)
			must.ErrorContains(t, err, "mount it with prjquota")
			t.Log(err)
		})
	}
}

func TestVMLimitByQgroup(t *testing.T) {
	vmtest.Require(t)
	TestLimitByQgroup(t)
}
