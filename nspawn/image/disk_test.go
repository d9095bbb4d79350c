package image

import (
	"bytes"
	"compress/gzip"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"

	"nomad-driver-nspawn/e2e/host/hosttest"
	"nomad-driver-nspawn/nspawn/image/download"
	"nomad-driver-nspawn/nspawn/image/store"
)

// content returns the content of a disk of 8 MiB with data at its beginning and its end.
func content() []byte {
	disk := make([]byte, 8<<20)
	copy(disk, "begin")
	copy(disk[len(disk)-3:], "end")
	return disk
}

func packed(t *testing.T, disk []byte) []byte {
	var buf bytes.Buffer
	w := gzip.NewWriter(&buf)
	_, err := w.Write(disk)
	must.NoError(t, err)
	must.NoError(t, w.Close())
	return buf.Bytes()
}

func qcow2Of(t *testing.T, disk []byte) []byte {
	tool := hosttest.Program(t, "qemu-img", "qemu-utils")
	raw, out := filepath.Join(t.TempDir(), "raw"), filepath.Join(t.TempDir(), "qcow2")
	must.NoError(t, os.WriteFile(raw, disk, 0o600))
	said, err := exec.Command(tool, "convert", "-f", "raw", "-O", "qcow2", "-c", raw, out).CombinedOutput()
	must.NoError(t, err, must.Sprint(string(said)))
	text, err := os.ReadFile(out)
	must.NoError(t, err)
	return text
}

// localFile returns the source of a local file.
func localFile(t *testing.T, content []byte, kind download.Kind) Source {
	path := filepath.Join(t.TempDir(), "disk")
	must.NoError(t, os.WriteFile(path, content, 0o644))
	return Source{Download: download.Request{URL: path, Verify: download.VerifyNo}, Kind: kind}
}

// A disk is stored raw and sparse, whatever its format was.
func TestPullDisk(t *testing.T) {
	l := newLab(t)
	want := content()
	for name, source := range map[string]Source{
		"raw":         localFile(t, want, download.Raw),
		"raw, gzip":   localFile(t, packed(t, want), download.Raw),
		"qcow2":       localFile(t, qcow2Of(t, want), download.QCOW2),
		"qcow2, gzip": localFile(t, packed(t, qcow2Of(t, want)), download.QCOW2),
	} {
		t.Run(name, func(t *testing.T) {
			image, err := l.pull(t.Context(), Request{Source: source})
			must.NoError(t, err)
			must.SliceEmpty(t, image.Layers)
			path := l.puller.Store.DiskFile(image)
			got, err := os.ReadFile(path)
			must.NoError(t, err)
			must.True(t, bytes.Equal(want, got))
			var stat unix.Stat_t
			must.NoError(t, unix.Stat(path, &stat))
			must.Less(t, 1<<20, stat.Blocks*512)
			must.Eq(t, 0o600, stat.Mode&0o777)
			again, err := l.pull(t.Context(), Request{Source: source, Policy: Never})
			must.NoError(t, err)
			must.Eq(t, image, again)
		})
	}
}

// The same bytes can be disks in different formats, or a tarball.
func TestPullDiskIsOfItsKind(t *testing.T) {
	l := newLab(t)
	bytes := qcow2Of(t, content())
	raw, err := l.pull(t.Context(), Request{Source: localFile(t, bytes, download.Raw)})
	must.NoError(t, err)
	disk, err := l.pull(t.Context(), Request{Source: localFile(t, bytes, download.QCOW2)})
	must.NoError(t, err)
	must.NotEq(t, raw.Disk, disk.Disk)
	_, err = l.pull(t.Context(), Request{Source: localFile(t, content(), download.QCOW2)})
	must.ErrorContains(t, err, "qcow2")
	left, err := os.ReadDir(filepath.Join(l.puller.Store.Dir, "tmp"))
	must.NoError(t, err)
	must.SliceEmpty(t, left)
}

// A truncated disk is not stored, even if no checksum is known.
func TestPullDiskThatIsCut(t *testing.T) {
	l := newLab(t)
	whole := packed(t, content())
	_, err := l.pull(t.Context(), Request{Source: localFile(t, whole[:len(whole)-9], download.Raw)})
	must.ErrorContains(t, err, "unpack disk")
	list, err := l.puller.Store.List(t.Context())
	must.NoError(t, err)
	must.SliceEmpty(t, list.Images)
	_, err = l.puller.Store.Collect(t.Context(), store.CollectOptions{})
	must.NoError(t, err)
}
