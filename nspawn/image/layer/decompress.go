package layer

import (
	"bufio"
	"bytes"
	"compress/bzip2"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/xi2/xz"
)

// Windows of Decompress, in bytes. A compressed stream asks for a window: memory
// for what the decompressor may have to look back at.
const (
	// Window is enough for what gzip, bzip2, zstd up to level 19, and xz up to
	// level 7 write.
	Window = 16 << 20

	// LargeWindow is enough for everything that the tools write unless they are
	// told to use more. The zstd tool itself refuses larger ones (zstd(1),
	// --memory), and `xz -9` has half of it.
	LargeWindow = 128 << 20
)

// ErrWindow is matched by the error of a stream that asks for a larger window than
// it may have.
var ErrWindow = errors.New("it needs more memory than is allowed")

// Decompress returns what the stream r holds. The stream is gzip, zstd, xz or bzip2;
// one that begins like none of them is taken as it is. Work and reading of r are done
// in a goroutine of their own, up to a megabyte ahead.
//
// The decompressor uses at most window bytes of memory, and some megabytes. A stream
// that asks for more, anywhere in it, ends in an error that matches ErrWindow.
//
// The caller must close what is returned. Close waits for a call of r.Read under
// way, so if that may block, cut it off first; r is not used afterwards.
func Decompress(r io.Reader, window int64) (io.ReadCloser, error) {
	in := bufio.NewReaderSize(r, 64<<10)
	// An error or a short stream shows when it is read.
	head, _ := in.Peek(10)
	name, open := recognise(head)
	out, err := open(in, window)
	if err != nil {
		return nil, fmt.Errorf("read %s stream: %w", name, limited(err, window))
	}
	return newReadAhead(windowed{out, window}), nil
}

// windowed explains errors about the window, which each format has its own of.
type windowed struct {
	io.ReadCloser
	window int64
}

func (w windowed) Read(p []byte) (int, error) {
	n, err := w.ReadCloser.Read(p)
	return n, limited(err, w.window)
}

func limited(err error, window int64) error {
	switch err {
	case xz.ErrMemlimit, zstd.ErrWindowSizeExceeded, zstd.ErrDecoderSizeExceeded:
		return fmt.Errorf("%w: its window is larger than %d MiB (%w)", ErrWindow, window>>20, err)
	}
	return err
}

type opener func(r io.Reader, window int64) (io.ReadCloser, error)

// recognise tells the format of a stream by its first ten bytes.
func recognise(head []byte) (name string, open opener) {
	switch {
	case bytes.HasPrefix(head, []byte("\x1f\x8b")): // RFC 1952, 2.3.1
		return "gzip", openGzip
	case bytes.HasPrefix(head, []byte("\x28\xb5\x2f\xfd")), // RFC 8878, 3.1.1
		len(head) > 4 && head[0]>>4 == 5 && bytes.HasPrefix(head[1:], []byte("\x2a\x4d\x18")): // 3.1.2, skippable frame
		return "zstd", openZstd
	case bytes.HasPrefix(head, []byte("\xfd7zXZ\x00")): // The .xz File Format, 2.1.1.1
		return "xz", openXz
	case len(head) == 10 && bytes.HasPrefix(head, []byte("BZh")) && // a name in a tar may begin like that
		(bytes.HasSuffix(head, []byte("1AY&SY")) || bytes.HasSuffix(head, []byte("\x17rE8P\x90"))): // first block; end of an empty stream
		return "bzip2", openBzip2
	}
	return "plain", openPlain
}

func openGzip(r io.Reader, _ int64) (io.ReadCloser, error) { return gzip.NewReader(r) }

func openZstd(r io.Reader, window int64) (io.ReadCloser, error) {
	// Without WithDecoderLowmem it takes twice the window.
	d, err := zstd.NewReader(r, zstd.WithDecoderMaxWindow(uint64(window)), zstd.WithDecoderLowmem(true))
	if err != nil {
		return nil, err
	}
	return d.IOReadCloser(), nil
}

// openXz uses xi2/xz, the XZ Embedded decoder in Go, because ulikunitz/xz has no limit
// for the dictionary, which may be 4 GiB. It also knows the filters for machine code.
func openXz(r io.Reader, window int64) (io.ReadCloser, error) {
	d, err := xz.NewReader(r, uint32(window))
	if err != nil {
		return nil, err
	}
	return io.NopCloser(d), nil
}

func openBzip2(r io.Reader, _ int64) (io.ReadCloser, error) {
	return io.NopCloser(bzip2.NewReader(r)), nil
}

func openPlain(r io.Reader, _ int64) (io.ReadCloser, error) { return io.NopCloser(r), nil }
