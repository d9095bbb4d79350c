package layer

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/shoenig/test/must"
)

// tools lists the commands whose output must be readable.
var tools = map[string][]string{
	"plain": {"cat"},
	"gzip":  {"gzip", "-c"},
	"zstd":  {"zstd", "-qc"},
	"xz":    {"xz", "-c"},
	"bzip2": {"bzip2", "-c"},
}

// compress returns data compressed by a command.
func compress(t testing.TB, command []string, data []byte) []byte {
	t.Helper()
	tool := exec.Command(command[0], command[1:]...)
	tool.Stdin = bytes.NewReader(data)
	out, err := tool.Output()
	must.NoError(t, err, must.Sprintf("install %s", command[0]))
	return out
}

func decompress(r io.Reader) ([]byte, error) {
	in, err := Decompress(r, LargeWindow)
	if err != nil {
		return nil, err
	}
	data, err := io.ReadAll(in)
	return data, errors.Join(err, in.Close())
}

func TestDecompress(t *testing.T) {
	// More than all buffers hold, and nothing at all.
	long := archive(t, file("a", strings.Repeat("0123456789", 120_000)), file("b", "x"))
	for name, command := range tools {
		t.Run(name, func(t *testing.T) {
			for _, data := range [][]byte{long, {}, []byte("x")} {
				packed := compress(t, command, data)
				for _, r := range []io.Reader{bytes.NewReader(packed), iotest.OneByteReader(bytes.NewReader(packed)), iotest.DataErrReader(bytes.NewReader(packed))} {
					got, err := decompress(r)
					must.NoError(t, err)
					must.True(t, bytes.Equal(data, got))
				}
				// Streams may follow each other, as pigz and pzstd write them.
				got, err := decompress(bytes.NewReader(bytes.Repeat(packed, 2)))
				must.NoError(t, err)
				must.True(t, bytes.Equal(bytes.Repeat(data, 2), got))
			}
		})
	}
}

func TestDecompressSkippableFrame(t *testing.T) {
	packed := append([]byte("\x5a\x2a\x4d\x18\x03\x00\x00\x00abc"), compress(t, tools["zstd"], []byte("data"))...)
	got, err := decompress(bytes.NewReader(packed))
	must.NoError(t, err)
	must.Eq(t, "data", string(got))
}

// TestDecompressNames uses archives that begin like compressed streams.
func TestDecompressNames(t *testing.T) {
	for _, name := range []string{"BZh", "BZh91AY", "\xfd7zX", "7zXZ"} {
		data := archive(t, file(name, ""))
		got, err := decompress(bytes.NewReader(data))
		must.NoError(t, err)
		must.True(t, bytes.Equal(data, got))
	}
}

// TestDamage unpacks compressed archives that have been truncated or changed. Each must
// end in an error, unless the damage is harmless, for example in the index at the end of
// an xz stream or in a Huffman table of bzip2 that no symbol uses.
func TestDamage(t *testing.T) {
	whole := archive(t, file("a", strings.Repeat("some text ", 50)), file("b", "x"))
	want := details(t, mustUnpack(t, Options{}, file("a", strings.Repeat("some text ", 50)), file("b", "x")))
	for name, command := range tools {
		t.Run(name, func(t *testing.T) {
			packed := compress(t, command, whole)
			unharmed := 0
			check := func(data []byte) {
				dir := t.TempDir()
				if err := decompressAndUnpack(t, data, dir); err == nil {
					unharmed++
					must.Eq(t, want[1:], details(t, dir)[1:])
				}
			}
			check(packed)
			must.Eq(t, 1, unharmed)
			step := 1 + len(packed)/200
			for n := 0; n < len(packed); n += step {
				check(packed[:n])
			}
			must.LessEq(t, 2, unharmed)
			if name == "plain" { // it has no checksum of its content
				return
			}
			for n := len(packed) / 4; n < len(packed); n++ {
				changed := bytes.Clone(packed)
				changed[n] ^= 0x10
				check(changed)
			}
			must.LessEq(t, 20, unharmed)
		})
	}
}

func decompressAndUnpack(t *testing.T, data []byte, dir string) error {
	in, err := Decompress(bytes.NewReader(data), LargeWindow)
	if err != nil {
		return err
	}
	defer in.Close()
	_, err = Unpack(t.Context(), in, dir, Options{})
	return err
}

// withDictionary changes the size of the dictionary in the block header of an xz stream
// (The .xz File Format, 3.1 and 5.3.1). The data does not need such a size.
func withDictionary(t testing.TB, packed []byte, size byte) []byte {
	t.Helper()
	packed = bytes.Clone(packed)
	header := packed[12:24]
	must.Eq(t, []byte{2, 0, 0x21, 1}, header[:4])
	header[4] = size
	binary.LittleEndian.PutUint32(header[8:], crc32.ChecksumIEEE(header[:8]))
	return packed
}

// TestWindowIsLimited uses streams that need more memory than allowed, at their beginning
// or later. That memory must never be allocated.
func TestWindowIsLimited(t *testing.T) {
	small := func(name string) []byte { return compress(t, tools[name], []byte("data")) }
	large := compress(t, []string{"zstd", "-qc", "--ultra", "--long=30"}, []byte("data"))
	// A frame with a single segment has no window, but the size of its content (RFC 8878,
	// 3.1.1.1.1).
	segment := []byte{0x28, 0xb5, 0x2f, 0xfd, 0xa0, 0, 0, 0, 0x80, 1, 0, 0}
	for name, c := range map[string]struct {
		data   []byte
		window int64
		want   string
	}{
		"zstd, 1 GiB":                  {large, LargeWindow, ""},
		"zstd, 1 GiB, second":          {append(small("zstd"), large...), LargeWindow, "data"},
		"zstd, one segment of 2 GiB":   {segment, LargeWindow, ""},
		"zstd, 32 MiB of 16":           {compress(t, []string{"zstd", "-qc", "--long=25"}, []byte("data")), Window, ""},
		"xz, 4 GiB":                    {withDictionary(t, small("xz"), 40), LargeWindow, ""},
		"xz, 192 MiB":                  {withDictionary(t, small("xz"), 31), LargeWindow, ""},
		"xz, 4 GiB in a second stream": {append(small("xz"), withDictionary(t, small("xz"), 40)...), LargeWindow, "data"},
		"xz -9 of 16 MiB":              {compress(t, []string{"xz", "-9c"}, []byte("data")), Window, ""},
	} {
		t.Run(name, func(t *testing.T) {
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			in, err := Decompress(bytes.NewReader(c.data), c.window)
			var got []byte
			if err == nil {
				got, err = io.ReadAll(in)
				must.NoError(t, in.Close())
			}
			runtime.ReadMemStats(&after)
			must.ErrorIs(t, err, ErrWindow)
			must.ErrorContains(t, err, fmt.Sprintf("larger than %d MiB", c.window>>20))
			must.Eq(t, c.want, string(got))
			must.Less(t, uint64(32<<20), after.TotalAlloc-before.TotalAlloc)
		})
	}
}

// TestWindowsOfTheTools reads what the tools write at each level.
func TestWindowsOfTheTools(t *testing.T) {
	data := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	for _, c := range []struct {
		command []string
		window  int64
	}{
		{[]string{"xz", "-7c"}, Window},
		{[]string{"xz", "-9ec"}, LargeWindow},
		{[]string{"xz", "-c", "--x86", "--lzma2"}, Window},
		{[]string{"xz", "-c", "-T2", "--block-size=65536"}, Window},
		{[]string{"zstd", "-qc", "-19"}, Window},
		{[]string{"zstd", "-qc", "--ultra", "-22", "--long=27"}, LargeWindow},
		{[]string{"gzip", "-9c"}, Window},
		{[]string{"bzip2", "-9c"}, Window},
	} {
		in, err := Decompress(bytes.NewReader(compress(t, c.command, data)), c.window)
		must.NoError(t, err)
		got, err := io.ReadAll(in)
		must.NoError(t, err, must.Sprint(c.command))
		must.True(t, bytes.Equal(data, got))
		must.NoError(t, in.Close())
	}
}

// TestReadsAhead writes into a pipe from which only the goroutine reads.
func TestReadsAhead(t *testing.T) {
	r, w := io.Pipe()
	begun := make(chan struct{})
	go func() {
		_, _ = w.Write(make([]byte, 1000)) // for Decompress to detect the format
		close(begun)
	}()
	in, err := Decompress(r, LargeWindow)
	must.NoError(t, err)
	<-begun
	_, err = w.Write(make([]byte, 512<<10)) // without the goroutine, this would block forever
	must.NoError(t, err)
	must.NoError(t, w.CloseWithError(errors.New("broken")))
	data, err := io.ReadAll(in)
	must.EqError(t, err, "broken")
	must.Eq(t, 1000+512<<10, len(data))
	must.NoError(t, in.Close())
}

// TestClose closes the stream after nothing, a part, or everything has been read.
func TestClose(t *testing.T) {
	for _, n := range []int64{0, 1, aheadSize, 3 << 20, 20 << 20} {
		var reads int // the race detector sees whether the goroutine has ended
		data := make([]byte, 10<<20)
		source := bytes.NewReader(data)
		in, err := Decompress(readerFunc(func(p []byte) (int, error) {
			reads++
			return source.Read(p)
		}), LargeWindow)
		must.NoError(t, err)
		_, err = io.Copy(io.Discard, io.LimitReader(in, n))
		must.NoError(t, err)
		must.NoError(t, in.Close())
		must.Positive(t, reads)
		must.ErrorIs(t, in.Close(), fs.ErrClosed)
		_, err = in.Read(make([]byte, 1))
		must.ErrorIs(t, err, fs.ErrClosed)
	}
}
