package qcow2

import (
	"bytes"
	"io"

	"github.com/klauspost/compress/flate"
	"github.com/klauspost/compress/zstd"
)

// decompress fills a cluster. The compressed data may be followed by other data.
type decompress func(cluster, compressed []byte) error

func newDecompress(compression uint8) decompress {
	if compression == zstdCompression {
		return newZstd()
	}
	return newDeflate()
}

// newDeflate decompresses streams without the zlib header, although the format calls them
// zlib.
func newDeflate() decompress {
	in := new(bytes.Reader)
	r := flate.NewReader(in)
	return func(cluster, compressed []byte) error {
		in.Reset(compressed)
		if err := r.(flate.Resetter).Reset(in, nil); err != nil {
			return err
		}
		_, err := io.ReadFull(r, cluster)
		return err
	}
}

// newZstd decompresses zstd streams without goroutines, and reads no further than
// necessary.
func newZstd() decompress {
	// NewReader cannot fail: the options are valid, and there is no stream yet.
	r, _ := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxWindow))
	return func(cluster, compressed []byte) error {
		if err := r.Reset(bytes.NewReader(compressed)); err != nil {
			return err
		}
		_, err := io.ReadFull(r, cluster)
		return err
	}
}

// maxWindow limits the memory in bytes that a cluster may require. QEMU's windows are as
// large as the data, which is one cluster; RFC 8878, 3.1.1.1.2, requires support for 8
// MiB.
const maxWindow = 8 << 20
