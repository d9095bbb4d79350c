package qcow2

import (
	"bytes"
	"io"

	"github.com/klauspost/compress/flate"
	"github.com/klauspost/compress/zstd"
)

// decompress fills a cluster. After its data there may be other.
type decompress func(cluster, compressed []byte) error

func newDecompress(compression uint8) decompress {
	if compression == zstdCompression {
		return newZstd()
	}
	return newDeflate()
}

// newDeflate is for streams without the header of zlib, though the format calls
// it zlib.
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

// newZstd has no goroutines, and reads no further than it must.
func newZstd() decompress {
	// These options are no error, and there is no stream yet to have one.
	r, _ := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxWindow))
	return func(cluster, compressed []byte) error {
		if err := r.Reset(bytes.NewReader(compressed)); err != nil {
			return err
		}
		_, err := io.ReadFull(r, cluster)
		return err
	}
}

// maxWindow limits the memory a cluster may ask for, in bytes. QEMU's is that of
// the data, which is a cluster; RFC 8878, 3.1.1.1.2, wants 8 MiB supported.
const maxWindow = 8 << 20
