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

// Windows of Decompress, in bytes. A compressed stream needs a window, which is memory
// for the earlier output to which the stream may refer.
const (
	// Window is enough for streams that gzip and bzip2 write, zstd up to level 19, and xz
	// up to level 7.
	Window = 16 << 20

	// LargeWindow is enough for everything that these tools write, unless they are told
	// to use more. The zstd tool itself refuses larger windows (zstd(1), --memory), and
	// `xz -9` uses half of it.
	LargeWindow = 128 << 20
)

// ErrWindow is matched by the error for a stream that needs a larger window than allowed.
var ErrWindow = errors.New("it needs more memory than is allowed")

// Decompress returns the decompressed content of r. r can be a gzip, zstd, xz or bzip2
// stream; a stream that begins like none of them is returned unchanged. A goroutine reads
// and decompresses up to a megabyte ahead.
//
// The decompressor uses at most window bytes of memory, plus some megabytes. If the
// stream needs more at any point, reading returns an error that matches ErrWindow.
//
// The caller must close the result. Close waits for a call of r.Read that is in progress,
// so if that may block, end it first. After Close, r is not used any more.
func Decompress(r io.Reader, window int64) (io.ReadCloser, error) {
	in := bufio.NewReaderSize(r, 64<<10)
	// An error or a short stream is reported when the stream is read.
	head, _ := in.Peek(10)
	name, open := recognise(head)
	out, err := open(in, window)
	if err != nil {
		return nil, fmt.Errorf("read %s stream: %w", name, limited(err, window))
	}
	return newReadAhead(windowed{out, window}), nil
}

// windowed explains errors about the window, because each format has errors of its own.
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

// recognise returns the format of a stream with the given first ten bytes.
func recognise(head []byte) (name string, open opener) {
	switch {
	case bytes.HasPrefix(head, []byte("\x1f\x8b")): // RFC 1952, 2.3.1
		return "gzip", openGzip
	case bytes.HasPrefix(head, []byte("\x28\xb5\x2f\xfd")), // RFC 8878, 3.1.1
		len(head) > 4 && head[0]>>4 == 5 && bytes.HasPrefix(head[1:], []byte("\x2a\x4d\x18")): // 3.1.2, skippable frame
		return "zstd", openZstd
	case bytes.HasPrefix(head, []byte("\xfd7zXZ\x00")): // The .xz File Format, 2.1.1.1
		return "xz", openXz
	case len(head) == 10 && bytes.HasPrefix(head, []byte("BZh")) && // the name of a file in a tar may begin like this
		(bytes.HasSuffix(head, []byte("1AY&SY")) || bytes.HasSuffix(head, []byte("\x17rE8P\x90"))): // first block; end of an empty stream
		return "bzip2", openBzip2
	}
	return "plain", openPlain
}

func openGzip(r io.Reader, _ int64) (io.ReadCloser, error) { return gzip.NewReader(r) }

func openZstd(r io.Reader, window int64) (io.ReadCloser, error) {
	// Without WithDecoderLowmem, it uses twice the window.
	d, err := zstd.NewReader(r, zstd.WithDecoderMaxWindow(uint64(window)), zstd.WithDecoderLowmem(true))
	if err != nil {
		return nil, err
	}
	return d.IOReadCloser(), nil
}

// openXz uses xi2/xz, the XZ Embedded decoder in Go. ulikunitz/xz cannot limit the
// dictionary, which may have 4 GiB. xi2/xz also supports the filters for machine code.
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
