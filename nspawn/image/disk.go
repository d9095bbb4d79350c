package image

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"slices"

	"nomad-driver-nspawn/nspawn/image/download"
	"nomad-driver-nspawn/nspawn/image/layer"
	"nomad-driver-nspawn/nspawn/image/qcow2"
	"nomad-driver-nspawn/nspawn/image/store"
)

// pullDisk stores a raw disk, which one of another kind becomes. Its digest is
// not that of the file: the same bytes may be taken for another kind.
func (p Puller) pullDisk(ctx context.Context, pull *store.Pull, digest string, file file, kind download.Kind) (store.Image, error) {
	disk := digestOf(string(kind) + " " + digest)
	_, err := pull.Disk(ctx, disk, func(ctx context.Context, to *os.File) error {
		packed, err := file.open(ctx)
		if err != nil {
			return err
		}
		if kind == download.Raw {
			return unpackDisk(ctx, packed, to)
		}
		// The clusters of a qcow2 are anywhere in it.
		plain, err := p.scratch()
		if err != nil {
			return err
		}
		defer plain.Close()
		if err := unpackDisk(ctx, packed, plain); err != nil {
			return err
		}
		return qcow2.Convert(ctx, plain, to, maxBytes)
	})
	if err != nil {
		return store.Image{}, err
	}
	return store.Image{Digest: disk, Disk: disk}, nil
}

// unpackDisk decompresses a disk, which it leaves sparse: most of it is empty.
func unpackDisk(ctx context.Context, packed io.Reader, to *os.File) error {
	plain, err := layer.Decompress(packed)
	if err != nil {
		return err
	}
	defer plain.Close()
	disk := &sparseFile{ctx: ctx, file: to}
	if _, err := io.Copy(disk, plain); err != nil {
		return fmt.Errorf("unpack disk: %w", err)
	}
	return to.Truncate(disk.size)
}

// sparseFile leaves out what is nothing but zeros.
type sparseFile struct {
	ctx  context.Context
	file *os.File
	size int64
}

var zeros [64 << 10]byte

func (f *sparseFile) Write(data []byte) (written int, err error) {
	if f.size+int64(len(data)) > maxBytes {
		return 0, fmt.Errorf("it is larger than the limit of %d bytes", int64(maxBytes))
	}
	for block := range slices.Chunk(data, len(zeros)) {
		if !bytes.Equal(block, zeros[:len(block)]) {
			if _, err := f.file.WriteAt(block, f.size); err != nil {
				return written, err
			}
		}
		f.size += int64(len(block))
		written += len(block)
	}
	return written, context.Cause(f.ctx)
}
