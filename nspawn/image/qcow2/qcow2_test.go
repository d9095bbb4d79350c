package qcow2

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/klauspost/compress/flate"
	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"
)

// Positions of tables and data in the files of newFile.
const (
	l1At         = 0x200
	l2At         = 0x400
	compressedAt = 0x805
	dataAt       = 0xa00 // the last cluster
)

// newFile makes a file of version 3 with clusters of 512 bytes and a disk of 100 clusters
// less a few bytes. The disk has data at 0, compressed data at 512, zeros at 1024, and
// nothing else.
func newFile(t testing.TB) []byte {
	t.Helper()
	file := make([]byte, dataAt+512)
	copy(file, "QFI\xfb")
	put32(file, 4, 3)
	put32(file, 20, 9)          // cluster bits
	put64(file, 24, 100*512-12) // size
	put32(file, 36, 2)          // entries of L1
	put64(file, 40, l1At)       // offset of L1
	put64(file, 48, 0x600)      // offset of refcounts, which only QEMU reads
	put32(file, 56, 1)          // number of clusters of refcounts
	put32(file, 96, 4)          // refcount order
	put32(file, 100, 104)       // length
	put64(file, l1At, l2At|isCopied)
	put64(file, l2At, dataAt|isCopied)
	var deflated bytes.Buffer
	w, err := flate.NewWriter(&deflated, 9)
	must.NoError(t, err)
	_, err = w.Write(bytes.Repeat([]byte("c"), 512))
	must.NoError(t, err)
	must.NoError(t, w.Close())
	put64(file, l2At+8, compressedAt|isCompressed)
	copy(file[compressedAt:], deflated.Bytes())
	put64(file, l2At+16, dataAt|isZero|isCopied)
	copy(file[dataAt:], bytes.Repeat([]byte("d"), 512))
	return file
}

func put32(p []byte, at int, v uint32) { binary.BigEndian.PutUint32(p[at:], v) }
func put64(p []byte, at int, v uint64) { binary.BigEndian.PutUint64(p[at:], v) }

// convert converts in memory, and returns what was written.
func convert(ctx context.Context, t testing.TB, in io.ReaderAt, maxBytes int64) ([]byte, error) {
	t.Helper()
	fd, err := unix.MemfdCreate("to", 0)
	must.NoError(t, err)
	to := os.NewFile(uintptr(fd), "to")
	defer to.Close()
	result := Convert(ctx, in, to, maxBytes)
	stat, err := to.Stat()
	must.NoError(t, err)
	must.LessEq(t, maxBytes, stat.Size())
	got := make([]byte, stat.Size())
	_, err = to.ReadAt(got, 0)
	must.NoError(t, err)
	return got, result
}

func TestConvertFile(t *testing.T) {
	want := make([]byte, 100*512-12)
	copy(want, bytes.Repeat([]byte("d"), 512))
	copy(want[512:], bytes.Repeat([]byte("c"), 512))
	got, err := convert(t.Context(), t, bytes.NewReader(newFile(t)), 100*512)
	must.NoError(t, err)
	must.True(t, bytes.Equal(want, got))
}

// TestHostile changes one detail of a good file at a time.
func TestHostile(t *testing.T) {
	for name, c := range map[string]struct {
		change func(file []byte)
		want   string
	}{
		"version":               {func(f []byte) { put32(f, 4, 4) }, "version 4 of the format is not supported, only 2 and 3 are"},
		"backing file":          {func(f []byte) { put64(f, 8, 0x110) }, "it has a backing file"},
		"tiny clusters":         {func(f []byte) { put32(f, 20, 8) }, "its clusters have 2^8 bytes"},
		"huge clusters":         {func(f []byte) { put32(f, 20, 22) }, "its clusters have 2^22 bytes"},
		"enormous clusters":     {func(f []byte) { put32(f, 20, 1<<32-1) }, "its clusters have 2^4294967295 bytes"},
		"no disk":               {func(f []byte) { put64(f, 24, 0) }, "its disk is empty"},
		"bomb":                  {func(f []byte) { put64(f, 24, 1<<20+1) }, "its disk has 1048577 bytes, but at most 1048576 are allowed"},
		"negative size":         {func(f []byte) { put64(f, 24, 1<<64-1) }, "its disk has 18446744073709551615 bytes"},
		"encryption":            {func(f []byte) { put32(f, 32, 2) }, "it is encrypted"},
		"L1 too short":          {func(f []byte) { put32(f, 36, 1) }, "its L1 table has 1 entries, but a disk of 51188 bytes needs 2"},
		"L1 nowhere":            {func(f []byte) { put64(f, 40, 0) }, "its L1 table cannot be at 0x0"},
		"L1 unaligned":          {func(f []byte) { put64(f, 40, l1At+8) }, "its L1 table cannot be at 0x208"},
		"L1 beyond all":         {func(f []byte) { put64(f, 40, 1<<63) }, "its L1 table cannot be at 0x8000000000000000"},
		"L1 outside":            {func(f []byte) { put64(f, 40, 0x10000) }, "read entry 0 of the L1 table at 0x10000: that is beyond the end of the file"},
		"dirty":                 {func(f []byte) { put64(f, 72, 1) }, "it is marked as dirty"},
		"corrupt":               {func(f []byte) { put64(f, 72, 3) }, "it is marked as corrupt"},
		"data file":             {func(f []byte) { put64(f, 72, 4) }, "it has an external data file"},
		"no compression":        {func(f []byte) { put64(f, 72, 8) }, "its features 0x8 do not fit its compression of type 0"},
		"extended L2":           {func(f []byte) { put64(f, 72, 16) }, "it has extended L2 entries"},
		"unknown feature":       {func(f []byte) { put64(f, 72, 1<<5|1<<63) }, "it has unknown features 0x8000000000000020"},
		"short header":          {func(f []byte) { put32(f, 100, 96) }, "its header of 96 bytes is too short"},
		"unknown compression":   {func(f []byte) { put64(f, 72, 8); put32(f, 100, 112); f[104] = 2 }, "its compression of type 2 is unknown"},
		"hidden compression":    {func(f []byte) { put32(f, 100, 112); f[104] = 1 }, "its features 0x0 do not fit its compression of type 1"},
		"wrong compression":     {func(f []byte) { put64(f, 72, 8); put32(f, 100, 112); f[104] = 1 }, "read cluster at 0x200 of the disk: decompress 507 bytes at 0x805 of the file"},
		"L2 is the header":      {func(f []byte) { put64(f, l1At, isCopied) }, "read L2 table 0: it cannot be at 0x8000000000000000 of the file"},
		"L2 unaligned":          {func(f []byte) { put64(f, l1At, l2At+8) }, "read L2 table 0: it cannot be at 0x408 of the file"},
		"L2 outside":            {func(f []byte) { put64(f, l1At+8, 0xc00) }, "read L2 table 1: read 512 bytes at 0xc00 of the file: that is beyond the end of the file"},
		"L2 reserved bits":      {func(f []byte) { put64(f, l1At, l2At|1<<56) }, "read L2 table 0: it cannot be at"},
		"cluster is the header": {func(f []byte) { put64(f, l2At, isCopied) }, "read cluster at 0x0 of the disk: it cannot be at"},
		"cluster unaligned":     {func(f []byte) { put64(f, l2At, dataAt|1<<8) }, "read cluster at 0x0 of the disk: it cannot be at 0xb00"},
		"cluster outside":       {func(f []byte) { put64(f, l2At+63*8, 1<<55) }, "read cluster at 0x7e00 of the disk: read 512 bytes at 0x80000000000000 of the file: that is beyond"},
		"cluster reserved bits": {func(f []byte) { put64(f, l2At, dataAt|1<<61) }, "read cluster at 0x0 of the disk: it cannot be at"},
		"zero in version 2":     {func(f []byte) { put32(f, 4, 2) }, "read cluster at 0x400 of the disk: it cannot be at"},
		"compressed header":     {func(f []byte) { put64(f, l2At+8, 0x1ff|isCompressed) }, "read cluster at 0x200 of the disk: it cannot be at"},
		"compressed copied":     {func(f []byte) { put64(f, l2At+8, compressedAt|isCompressed|isCopied) }, "read cluster at 0x200 of the disk: it cannot be at"},
		"compressed far away":   {func(f []byte) { put64(f, l2At+8, 1<<56|isCompressed) }, "read cluster at 0x200 of the disk: it cannot be at"},
		"compressed outside":    {func(f []byte) { put64(f, l2At+8, 0xc00|isCompressed) }, "read cluster at 0x200 of the disk: decompress 0 bytes at 0xc00 of the file: unexpected EOF"},
		"compressed garbage":    {func(f []byte) { put64(f, l2At+8, dataAt|isCompressed|1<<61) }, "read cluster at 0x200 of the disk: decompress 512 bytes at 0xa00 of the file: flate: corrupt input"},
	} {
		t.Run(name, func(t *testing.T) {
			file := newFile(t)
			c.change(file)
			_, err := convert(t.Context(), t, bytes.NewReader(file), 1<<20)
			must.ErrorContains(t, err, "convert qcow2 disk: "+c.want)
		})
	}
}

func TestTruncated(t *testing.T) {
	file := newFile(t)
	for n := range file {
		_, err := convert(t.Context(), t, bytes.NewReader(file[:n]), 1<<20)
		must.Error(t, err, must.Sprintf("%d of %d bytes", n, len(file)))
	}
}

// TestMemory uses files that require much memory.
func TestMemory(t *testing.T) {
	file := newFile(t)
	put32(file, 20, 21)    // cluster bits
	put64(file, 24, 1<<60) // size
	put32(file, 36, 1<<31) // entries of L1, 16 GiB
	put64(file, 40, 2<<20) // offset of L1
	in := io.NewSectionReader(zeros{file}, 0, 2<<20+8<<21)
	to, err := os.Create(filepath.Join(t.TempDir(), "to"))
	must.NoError(t, err)
	defer to.Close()

	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	err = Convert(t.Context(), in, to, 1<<42)
	must.ErrorContains(t, err, "its disk has 1152921504606846976 bytes")
	put64(file, 24, 1<<42)
	must.NoError(t, Convert(t.Context(), in, to, 1<<42))
	runtime.ReadMemStats(&after)
	must.Less(t, 16<<20, after.TotalAlloc-before.TotalAlloc)
}

// zeros returns only zeros after its bytes.
type zeros struct{ begin []byte }

func (z zeros) ReadAt(p []byte, offset int64) (int, error) {
	clear(p)
	copy(p, z.begin[min(offset, int64(len(z.begin))):])
	return len(p), nil
}

// counted calls before with the number of each read.
type counted struct {
	io.ReaderAt
	n      int
	before func(n int) error
}

func (c *counted) ReadAt(p []byte, offset int64) (int, error) {
	c.n++
	if err := c.before(c.n); err != nil {
		return 0, err
	}
	return c.ReaderAt.ReadAt(p, offset)
}

// reads is the number of reads for the file of newFile.
const reads = 5

func TestCancelled(t *testing.T) {
	for stop := range reads {
		ctx, cancel := context.WithCancel(t.Context())
		in := &counted{bytes.NewReader(newFile(t)), 0, func(n int) error {
			if n == stop {
				cancel()
			}
			return nil
		}}
		if stop == 0 {
			cancel()
		}
		_, err := convert(ctx, t, in, 1<<20)
		must.ErrorIs(t, err, context.Canceled)
		must.LessEq(t, max(stop, 1)+1, in.n)
		cancel()
	}
}

func TestReadFails(t *testing.T) {
	broken := errors.New("broken disk")
	for stop := 1; stop <= reads+1; stop++ {
		in := &counted{bytes.NewReader(newFile(t)), 0, func(n int) error {
			if n == stop {
				return broken
			}
			return nil
		}}
		_, err := convert(t.Context(), t, in, 1<<20)
		if stop <= reads {
			must.ErrorIs(t, err, broken)
		} else {
			must.NoError(t, err)
		}
	}
}

// TestWriteFails uses files that cannot grow, or cannot be written to.
func TestWriteFails(t *testing.T) {
	for seals, size := range map[int]int64{unix.F_SEAL_GROW: 0, unix.F_SEAL_WRITE: 100*512 - 12} {
		fd, err := unix.MemfdCreate("to", unix.MFD_ALLOW_SEALING)
		must.NoError(t, err)
		to := os.NewFile(uintptr(fd), "to")
		must.NoError(t, to.Truncate(size))
		_, err = unix.FcntlInt(to.Fd(), unix.F_ADD_SEALS, seals)
		must.NoError(t, err)
		must.ErrorIs(t, Convert(t.Context(), bytes.NewReader(newFile(t)), to, 1<<20), unix.EPERM)
		must.NoError(t, to.Close())
	}
}

// FuzzConvert converts arbitrary files. It must not write more than allowed, and the disk
// must have the size that the file names.
func FuzzConvert(f *testing.F) {
	file := newFile(f)
	f.Add(file)
	for _, change := range []func(f []byte){
		func(f []byte) { put32(f, 4, 2); put64(f, l2At+16, 0) },
		func(f []byte) { put32(f, 100, 112); f[104] = zstdCompression; put64(f, 72, hasCompressionType) },
		func(f []byte) { put64(f, l1At+8, l2At) },
		func(f []byte) { put32(f, 20, 10) },
		func(f []byte) { put64(f, 24, 1<<20) },
	} {
		changed := bytes.Clone(file)
		change(changed)
		f.Add(changed)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		got, err := convert(t.Context(), t, bytes.NewReader(data), 1<<20)
		if err == nil {
			must.EqOp(t, binary.BigEndian.Uint64(data[24:]), uint64(len(got)))
		}
	})
}
