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

// pullDisk stores a raw disk; a disk in another format is converted. Its digest differs
// from that of the file, because the same bytes can be interpreted as another format.
func (p Puller) pullDisk(ctx context.Context, pull *store.Pull, digest string, file *file, kind download.Kind) (store.Image, error) {
	disk := digestOf(string(kind) + " " + digest)
	_, err := pull.Disk(ctx, disk, file.origin, func(ctx context.Context, to *os.File) error {
		if kind == download.Raw {
			return file.unpackDisk(ctx, to)
		}
		// The clusters of a qcow2 file can be anywhere in it, so it needs random access.
		plain, err := p.scratch()
		if err != nil {
			return err
		}
		defer plain.Close()
		if err := file.unpackDisk(ctx, plain); err != nil {
			return err
		}
		return qcow2.Convert(ctx, plain, &budgetFile{to, file.budget}, maxBytes)
	})
	if err != nil {
		return store.Image{}, err
	}
	return store.Image{Digest: disk, Disk: disk}, nil
}

// unpackDisk decompresses a disk into a sparse file, because most of a disk is empty.
func (f *file) unpackDisk(ctx context.Context, to *os.File) error {
	return f.unpacking(ctx, func(packed io.Reader, window int64) error {
		if err := to.Truncate(0); err != nil { // an attempt with a smaller window may have written to it
			return err
		}
		plain, err := layer.Decompress(packed, window)
		if err != nil {
			return err
		}
		defer plain.Close()
		disk := &sparseFile{ctx: ctx, file: &budgetFile{to, f.budget}}
		if _, err := io.Copy(disk, plain); err != nil {
			return fmt.Errorf("unpack disk: %w", err)
		}
		return to.Truncate(disk.size)
	})
}

// budgetFile is a file whose writes count against the budget of a pull.
type budgetFile struct {
	*os.File
	budget *budget
}

func (f *budgetFile) WriteAt(p []byte, offset int64) (int, error) {
	if _, err := f.budget.Write(p); err != nil {
		return 0, err
	}
	return f.File.WriteAt(p, offset)
}

// sparseFile does not write blocks of zeros.
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
