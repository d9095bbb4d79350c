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
func (p Puller) pullDisk(ctx context.Context, pull *store.Pull, digest string, file *file, kind download.Kind) (store.Image, error) {
	disk := digestOf(string(kind) + " " + digest)
	_, err := pull.Disk(ctx, disk, file.origin, func(ctx context.Context, to *os.File) error {
		if kind == download.Raw {
			return file.unpackDisk(ctx, to)
		}
		// The clusters of a qcow2 are anywhere in it.
		plain, err := p.scratch()
		if err != nil {
			return err
		}
		defer plain.Close()
		if err := file.unpackDisk(ctx, plain); err != nil {
			return err
		}
		return qcow2.Convert(ctx, plain, &roomyFile{to, file.room}, maxBytes)
	})
	if err != nil {
		return store.Image{}, err
	}
	return store.Image{Digest: disk, Disk: disk}, nil
}

// unpackDisk decompresses a disk, which it leaves sparse: most of it is empty.
func (f *file) unpackDisk(ctx context.Context, to *os.File) error {
	return f.unpacking(ctx, func(packed io.Reader, window int64) error {
		if err := to.Truncate(0); err != nil { // of a try with too small a window
			return err
		}
		plain, err := layer.Decompress(packed, window)
		if err != nil {
			return err
		}
		defer plain.Close()
		disk := &sparseFile{ctx: ctx, file: &roomyFile{to, f.room}}
		if _, err := io.Copy(disk, plain); err != nil {
			return fmt.Errorf("unpack disk: %w", err)
		}
		return to.Truncate(disk.size)
	})
}

// roomyFile is a file in the room of a pull.
type roomyFile struct {
	*os.File
	room *room
}

func (f *roomyFile) WriteAt(p []byte, offset int64) (int, error) {
	if _, err := f.room.Write(p); err != nil {
		return 0, err
	}
	return f.File.WriteAt(p, offset)
}

// sparseFile leaves out what is nothing but zeros.
type sparseFile struct {
	ctx  context.Context
	file io.WriterAt
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
