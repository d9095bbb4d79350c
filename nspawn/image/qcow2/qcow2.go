// Package qcow2 makes raw disks of those in QEMU's format, of which
// docs/interop/qcow2 of QEMU tells.
package qcow2

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// File is what a disk is written to.
type File interface {
	io.WriterAt
	Truncate(size int64) error
}

// Convert writes the disk that a qcow2 file holds to an empty file, which is left
// sparse where the disk has nothing or zeros. The disk has at most maxBytes;
// memory of some clusters (of at most 2 MiB) is used, whatever the file says.
//
// It is an error if the disk is not in this file alone, whole and unencrypted. No
// other file is ever opened. Clusters that several entries point to, as QEMU never
// has it, are just written several times. After an error to holds a part of the
// disk.
func Convert(ctx context.Context, in io.ReaderAt, to File, maxBytes int64) error {
	h, err := readHeader(in)
	if err == nil {
		err = h.check(maxBytes)
	}
	if err == nil {
		err = to.Truncate(int64(h.Size))
	}
	if err == nil {
		err = newConverter(h, in, to).run(ctx)
	}
	if err != nil {
		return fmt.Errorf("convert qcow2 disk: %w", err)
	}
	return nil
}

type converter struct {
	header
	in         io.ReaderAt
	to         File
	decompress decompress

	cluster    []byte // of the disk
	compressed []byte // as in the file
}

func newConverter(h header, in io.ReaderAt, to File) *converter {
	return &converter{
		h, in, to, newDecompress(h.Compression),
		make([]byte, h.clusterSize()),
		make([]byte, 2*h.clusterSize()), // no entry can name more sectors
	}
}

// Bits of entries.
const (
	isZero       = 1 << 0  // L2 of version 3, not compressed: the cluster reads as zeros, whatever else it says
	isCompressed = 1 << 62 // L2
	isCopied     = 1 << 63 // L1 and L2: nobody else has what it points to; of no use here
)

// run goes through the L1 table, each entry of which is 0 or the place of an L2
// table.
func (c *converter) run(ctx context.Context) error {
	l1 := bufio.NewReader(io.NewSectionReader(c.in, int64(c.L1Offset), 8*c.tables()))
	l2 := make([]byte, c.clusterSize())
	for i := range c.tables() {
		if err := ctx.Err(); err != nil {
			return err
		}
		var entry [8]byte
		if _, err := io.ReadFull(l1, entry[:]); err != nil {
			return fmt.Errorf("read entry %d of the L1 table at %#x: %w", i, c.L1Offset, outside(err))
		}
		if entry == [8]byte{} {
			continue
		}
		if err := c.read(l2, binary.BigEndian.Uint64(entry[:])); err != nil {
			return fmt.Errorf("read L2 table %d: %w", i, err)
		}
		if err := c.convertTable(ctx, i*c.perTable(), l2); err != nil {
			return err
		}
	}
	return nil
}

// convertTable writes the clusters that an L2 table tells of, the first of which
// is given by its number.
func (c *converter) convertTable(ctx context.Context, first int64, l2 []byte) error {
	for i := first; i < min(first+c.perTable(), c.clusters()); i++ {
		entry := binary.BigEndian.Uint64(l2[8*(i-first):])
		if c.isHole(entry) {
			continue
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		start := i << c.ClusterBits
		cluster := c.cluster[:min(c.clusterSize(), int64(c.Size)-start)]
		if err := c.readCluster(cluster, entry); err != nil {
			return fmt.Errorf("read cluster at %#x of the disk: %w", start, err)
		}
		if err := writeSparse(c.to, cluster, start); err != nil {
			return err
		}
	}
	return nil
}

func (c *converter) isHole(entry uint64) bool {
	return entry == 0 || c.Version > 2 && entry&(isCompressed|isZero) == isZero
}

// readCluster reads what an L2 entry says.
func (c *converter) readCluster(cluster []byte, entry uint64) error {
	if entry&isCompressed == 0 {
		return c.read(cluster, entry)
	}
	// Its place, then the number of sectors beyond the one that has the place.
	bits := 70 - c.ClusterBits
	offset := entry & (1<<bits - 1)
	sectors := entry &^ isCompressed >> bits
	if offset < uint64(c.clusterSize()) || offset >= maxOffset || entry&isCopied != 0 {
		return fmt.Errorf("it cannot be at %#x of the file", entry)
	}
	compressed := c.compressed[:(sectors+1)*512-offset%512]
	// The last sector need not be whole.
	n, err := c.in.ReadAt(compressed, int64(offset))
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if err := c.decompress(c.cluster, compressed[:n]); err != nil {
		return fmt.Errorf("decompress %d bytes at %#x of the file: %w", n, offset, err)
	}
	return nil
}

// read fills p from the place in the file that an entry gives.
func (c *converter) read(p []byte, entry uint64) error {
	offset := entry &^ isCopied
	if !c.isOffset(offset) {
		return fmt.Errorf("it cannot be at %#x of the file", entry)
	}
	if n, err := c.in.ReadAt(p, int64(offset)); n < len(p) {
		return fmt.Errorf("read %d bytes at %#x of the file: %w", len(p), offset, outside(err))
	}
	return nil
}

// outside says what the end of the file means.
func outside(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return errors.New("that is beyond the end of the file, which may be truncated")
	}
	return err
}

// writeSparse writes to a file what is not zero, in pieces that are a compromise
// between holes missed and the number of system calls.
func writeSparse(to io.WriterAt, p []byte, offset int64) error {
	for len(p) > 0 {
		n := min(len(p), 64<<10)
		if !allZero(p[:n]) {
			if _, err := to.WriteAt(p[:n], offset); err != nil {
				return err
			}
		}
		p, offset = p[n:], offset+int64(n)
	}
	return nil
}

// allZero is at memcmp's speed: every byte is as the one before.
func allZero(p []byte) bool { return p[0] == 0 && bytes.Equal(p[1:], p[:len(p)-1]) }
