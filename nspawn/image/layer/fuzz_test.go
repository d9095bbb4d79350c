package layer

import (
	"bytes"
	"io"
	"io/fs"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"
)

// FuzzUnpack unpacks arbitrary streams. Nothing outside of the directory may change, the
// limits must hold, and there must be no overlayfs metadata except for whiteouts.
// Minimizing interesting input is not worth a minute:
//
//	go test -run - -fuzz FuzzUnpack -fuzzminimizetime 10x ./nspawn/image/layer
func FuzzUnpack(f *testing.F) {
	memory := f.TempDir() // this is many times as fast as a disk
	must.NoError(f, unix.Mount("tmpfs", memory, "tmpfs", 0, "size=64m"))
	f.Cleanup(func() { must.NoError(f, unix.Unmount(memory, unix.MNT_DETACH)) })
	f.Setenv("TMPDIR", memory)
	for _, c := range hostile(f, "/outside") {
		if len(c.data) < 1<<16 {
			f.Add(c.data, true)
			f.Add(c.data, false)
		}
	}
	f.Add(archive(f, dir("a"), file(".wh.a", ""), file("a/b", "x"), file("a/.wh..wh..opq", "")), true)
	f.Fuzz(func(t *testing.T, data []byte, whiteouts bool) {
		guard, dir := guarded(t)
		before := around(t, guard)
		opts := Options{Whiteouts: whiteouts, MaxBytes: 1 << 20, MaxEntries: 200}
		stats, err := Unpack(t.Context(), bytes.NewReader(data), dir, opts)
		must.Eq(t, before, around(t, guard))
		if err == nil {
			must.LessEq(t, opts.MaxBytes, stats.Bytes)
			must.LessEq(t, opts.MaxEntries, stats.Entries)
		}
		checkMetadata(t, dir, whiteouts)
	})
}

// checkMetadata looks for metadata that only whiteouts may create.
func checkMetadata(t *testing.T, dir string, whiteouts bool) {
	t.Helper()
	count := int64(-1)
	must.NoError(t, filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		must.NoError(t, err)
		count++
		must.False(t, !whiteouts && isWhiteout(lstat(t, path)), must.Sprint(path))
		names := make([]byte, 64<<10)
		n, err := unix.Llistxattr(path, names)
		must.NoError(t, err)
		for name := range bytes.SplitSeq(bytes.TrimRight(names[:n], "\x00"), []byte{0}) {
			overlay := bytes.HasPrefix(name, []byte("trusted."))
			must.False(t, overlay && !(whiteouts && string(name) == "trusted.overlay.opaque"), must.Sprintf("%s: %s", path, name))
		}
		return nil
	}))
	must.LessEq(t, 200, count)
}

// FuzzDecompress decompresses arbitrary streams, within the window of memory.
func FuzzDecompress(f *testing.F) {
	for _, command := range tools {
		packed := compress(f, command, []byte("some text some text some text"))
		f.Add(packed)
		f.Add(append(packed, packed...))
	}
	f.Add(withDictionary(f, compress(f, tools["xz"], []byte("x")), 40))
	f.Add(compress(f, []string{"xz", "-c", "--x86", "--delta", "--lzma2"}, []byte("text")))
	f.Add(compress(f, []string{"zstd", "-qc", "--ultra", "--long=27"}, []byte("text")))
	f.Fuzz(func(t *testing.T, data []byte) {
		const window, most = 1 << 20, 4 << 20
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		in, err := Decompress(bytes.NewReader(data), window)
		if err != nil {
			return
		}
		_, _ = io.Copy(io.Discard, io.LimitReader(in, most))
		_ = in.Close() // a truncated gzip stream fails again
		runtime.ReadMemStats(&after)
		// Everything that was allocated, whether it was freed or not. Each frame may
		// create some tables again.
		must.Less(t, 64<<20+uint64(len(data))<<10, after.TotalAlloc-before.TotalAlloc)
	})
}
