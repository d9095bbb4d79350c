package layer

import (
	"bufio"
	"bytes"
	"compress/bzip2"
	"fmt"
	"io"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
)

// maxWindow limits the memory a zstd stream may ask for, in bytes. It is the
// limit of the zstd tool (zstd(1), --memory).
const maxWindow = 128 << 20

// Decompress returns what the stream r holds, which is gzip, zstd, xz, bzip2 or,
// if it begins like none of them, taken as it is. Work and reading of r are done
// in a goroutine of their own, up to a megabyte ahead.
//
// The caller must close what is returned. That waits for a call of r.Read under
// way, so if that may block, cut it off first; r is not used afterwards.
func Decompress(r io.Reader) (io.ReadCloser, error) {
	in := bufio.NewReaderSize(r, 64<<10)
	// An error or a short stream shows when it is read.
	head, _ := in.Peek(10)
	name, open := recognise(head)
	out, err := open(in)
	if err != nil {
		return nil, fmt.Errorf("read %s stream: %w", name, err)
	}
	return newReadAhead(out), nil
}

type opener func(io.Reader) (io.ReadCloser, error)

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

func openGzip(r io.Reader) (io.ReadCloser, error) { return gzip.NewReader(r) }

func openZstd(r io.Reader) (io.ReadCloser, error) {
	d, err := zstd.NewReader(r, zstd.WithDecoderMaxWindow(maxWindow))
	if err != nil {
		return nil, err
	}
	return d.IOReadCloser(), nil
}

func openXz(r io.Reader) (io.ReadCloser, error) {
	d, err := xz.NewReader(r)
	if err != nil {
		return nil, err
	}
	return io.NopCloser(d), nil
}

func openBzip2(r io.Reader) (io.ReadCloser, error) { return io.NopCloser(bzip2.NewReader(r)), nil }

func openPlain(r io.Reader) (io.ReadCloser, error) { return io.NopCloser(r), nil }
