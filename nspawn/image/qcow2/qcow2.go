// Package qcow2 converts disks in QEMU's format to raw disks. The format is described in
// docs/interop/qcow2 of QEMU.
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

// File is the file to which a disk is written.
type File interface {
	io.WriterAt
	Truncate(size int64) error
}

// Convert writes the disk in a qcow2 file to an empty file. The result is sparse where
// the disk has no data or zeros. The disk may have at most maxBytes. Convert needs memory
// for a few clusters of at most 2 MiB each, whatever the file contains.
//
// It is an error if the disk is incomplete or encrypted, or has parts in another file.
// Convert never opens other files. Clusters to which several entries refer, which QEMU
// never creates, are written several times. After an error, to contains a part of the
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

	cluster    []byte // decompressed content
	compressed []byte // content as in the file
}

func newConverter(h header, in io.ReaderAt, to File) *converter {
	return &converter{
		h, in, to, newDecompress(h.Compression),
		make([]byte, h.clusterSize()),
		make([]byte, 2*h.clusterSize()), // no entry can refer to more sectors
	}
}

// Bits of table entries.
const (
	isZero       = 1 << 0  // L2 of version 3, not compressed: the cluster reads as zeros, whatever the rest of the entry is
	isCompressed = 1 << 62 // L2
	isCopied     = 1 << 63 // L1 and L2: nothing else refers to the cluster; not needed here
)

// run processes the L1 table. Each of its entries is 0 or the position of an L2 table.
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

// convertTable writes the clusters that an L2 table describes. first is the number of the
// first one.
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

// readCluster reads the cluster to which an L2 entry refers.
func (c *converter) readCluster(cluster []byte, entry uint64) error {
	if entry&isCompressed == 0 {
		return c.read(cluster, entry)
	}
	// The entry has the position, and then the number of additional sectors.
	bits := 70 - c.ClusterBits
	offset := entry & (1<<bits - 1)
	sectors := entry &^ isCompressed >> bits
	if offset < uint64(c.clusterSize()) || offset >= maxOffset || entry&isCopied != 0 {
		return fmt.Errorf("it cannot be at %#x of the file", entry)
	}
	compressed := c.compressed[:(sectors+1)*512-offset%512]
	// The last sector may be incomplete at the end of the file.
	n, err := c.in.ReadAt(compressed, int64(offset))
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if err := c.decompress(c.cluster, compressed[:n]); err != nil {
		return fmt.Errorf("decompress %d bytes at %#x of the file: %w", n, offset, err)
	}
	return nil
}

// read fills p from the position in the file to which an entry refers.
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

// outside explains an error that means the end of the file.
func outside(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return errors.New("that is beyond the end of the file, which may be truncated")
	}
	return err
}

// writeSparse writes the parts of p that are not zero. The block size is a compromise
// between holes that are missed and the number of system calls.
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

// allZero compares each byte with the one before it, which runs at the speed of memcmp.
func allZero(p []byte) bool { return p[0] == 0 && bytes.Equal(p[1:], p[:len(p)-1]) }
