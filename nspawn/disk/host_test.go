package disk

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/shoenig/test/must"

	"nomad-driver-nspawn/e2e/host/hosttest"
)

func newMounts(t *testing.T) Mounts {
	hosttest.Require(t)
	m := Mounts{Dir: filepath.Join(t.TempDir(), "disks")}
	t.Cleanup(func() {
		must.NoError(t, m.Detach("any"))
		left, err := os.ReadDir(m.Dir)
		must.NoError(t, err)
		must.SliceEmpty(t, left)
	})
	return m
}

func attach(t *testing.T, m Mounts, machine string, image Image) string {
	dir, err := m.Attach(t.Context(), machine, image)
	must.NoError(t, err)
	t.Cleanup(func() { must.NoError(t, m.Detach(machine)) })
	return dir
}

// Ten machines of one image need one loop device, which is freed with the last of them.
func TestHostShared(t *testing.T) { testShared(t) }

func testShared(t *testing.T) {
	m := newMounts(t)
	for name, image := range map[string]string{
		"file system": hosttest.CopyOf(t, hosttest.BusyboxDisk),
		"partitions":  hosttest.Disk(t, hosttest.Partition{Type: hosttest.RootX86, Content: hosttest.BusyboxDisk}),
	} {
		t.Run(name, func(t *testing.T) {
			dir := attach(t, m, "m0", Image{Path: image})
			_, err := os.Stat(filepath.Join(dir, "bin/busybox"))
			must.NoError(t, err)
			must.Error(t, os.WriteFile(filepath.Join(dir, "file"), nil, 0o644))
			must.Eq(t, dir, attach(t, m, "m1", Image{Path: image}))
			must.Eq(t, dir, attach(t, m, "m1", Image{Path: image})) // a second time, as after a crash
			must.SliceLen(t, 1, hosttest.Loops(t, image))
			must.NoError(t, m.Detach("m0"))
			must.SliceLen(t, 1, hosttest.Loops(t, image))
			must.NoError(t, m.Detach("m1"))
			must.SliceEmpty(t, hosttest.Loops(t, image))
			must.NoError(t, m.Detach("m1"))
		})
	}
}

// A replaced file is another image.
func TestHostReplaced(t *testing.T) {
	m := newMounts(t)
	image, other := hosttest.CopyOf(t, hosttest.BusyboxDisk), hosttest.CopyOf(t, hosttest.BusyboxDisk)
	old := attach(t, m, "m0", Image{Path: image})
	must.NoError(t, os.Rename(other, image))
	must.NotEq(t, old, attach(t, m, "m1", Image{Path: image}))
}

func TestHostWritable(t *testing.T) {
	m := newMounts(t)
	image := hosttest.CopyOf(t, hosttest.BusyboxDisk)
	attach(t, m, "reader", Image{Path: image})
	_, err := m.Attach(t.Context(), "writer", Image{Path: image, Writable: true})
	var busy *BusyError
	must.True(t, errors.As(err, &busy), must.Sprint(err))
	must.Eq(t, "reader", busy.Holder)
	must.NoError(t, m.Detach("reader"))

	dir := attach(t, m, "writer", Image{Path: image, Writable: true})
	must.NoError(t, os.WriteFile(filepath.Join(dir, "file"), []byte("kept"), 0o644))
	for _, writable := range []bool{true, false} {
		_, err = m.Attach(t.Context(), "other", Image{Path: image, Writable: writable})
		must.ErrorContains(t, err, "used by machine writer")
	}
	must.NoError(t, m.Detach("writer"))
	text, err := os.ReadFile(filepath.Join(attach(t, m, "reader", Image{Path: image}), "file"))
	must.NoError(t, err)
	must.Eq(t, "kept", string(text))
}

func TestHostNoImage(t *testing.T) {
	m := newMounts(t)
	garbage := filepath.Join(t.TempDir(), "garbage")
	must.NoError(t, os.WriteFile(garbage, []byte(strings.Repeat("garbage ", 1<<17)), 0o644))
	for path, want := range map[string]string{
		garbage:               "mount disk image " + garbage + ": systemd-dissect: ",
		garbage + ".missing":  "no such file",
		filepath.Dir(garbage): "neither a regular file nor a block device",
		"/dev/zero":           "neither a regular file nor a block device",
	} {
		_, err := m.Attach(t.Context(), "m0", Image{Path: path})
		must.ErrorContains(t, err, want)
		t.Log(err)
	}
	must.SliceEmpty(t, hosttest.Loops(t, garbage))
}

func TestHostPolicy(t *testing.T) {
	m := newMounts(t)
	image := hosttest.CopyOf(t, hosttest.BusyboxDisk)
	_, err := m.Attach(t.Context(), "m0", Image{Path: image, Policy: "root=verity"})
	must.ErrorContains(t, err, "image polic") // systemd 252 does not support them and reports that
	t.Log(err)
}
