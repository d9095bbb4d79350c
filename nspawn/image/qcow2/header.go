package qcow2

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// header is the beginning of the file ("Header" in docs/interop/qcow2 of QEMU).
type header struct {
	Magic            [4]byte
	Version          uint32
	BackingOffset    uint64 // position of a file name
	BackingSize      uint32
	ClusterBits      uint32
	Size             uint64 // size of the disk
	Encryption       uint32
	L1Size           uint32 // number of entries
	L1Offset         uint64
	RefcountOffset   uint64
	RefcountClusters uint32
	Snapshots        uint32
	SnapshotsOffset  uint64

	// Fields since version 3.
	Incompatible  uint64
	Compatible    uint64
	AutoClear     uint64
	RefcountOrder uint32
	Length        uint32
	Compression   uint8 // only if Length includes it
}

// Lengths of the header up to certain fields.
const (
	lengthOfVersion2   = 72
	lengthOfVersion3   = 104
	lengthWithMostOfIt = 105
)

// Incompatible features.
const (
	isDirty = 1 << iota
	isCorrupt
	hasDataFile
	hasCompressionType
	hasExtendedL2

	knownFeatures = 1<<iota - 1
)

// Values of Compression.
const (
	zlibCompression = iota
	zstdCompression
)

func readHeader(in io.ReaderAt) (header, error) {
	var raw [lengthWithMostOfIt]byte // Every file with a table is longer.
	if n, err := in.ReadAt(raw[:], 0); n < len(raw) {
		return header{}, fmt.Errorf("read its header: %w", outside(err))
	}
	var h header
	if _, err := binary.Decode(raw[:], binary.BigEndian, &h); err != nil {
		return header{}, fmt.Errorf("read its header: %w", err)
	}
	if h.Version == 2 {
		// In version 2, extensions or the name of a backing file are here.
		h.Incompatible, h.Length = 0, lengthOfVersion2
	}
	if h.Length < lengthWithMostOfIt {
		h.Compression = zlibCompression
	}
	return h, nil
}

const remedy = "make a file without it with qemu-img convert"

// check refuses headers that are not supported or not valid.
func (h header) check(maxBytes int64) error {
	switch {
	case h.Magic != [4]byte{'Q', 'F', 'I', 0xfb}:
		return errors.New("the file has another format")
	case h.Version != 2 && h.Version != 3:
		return fmt.Errorf("version %d of the format is not supported, only 2 and 3 are", h.Version)
	case h.Version == 3 && h.Length < lengthOfVersion3:
		return fmt.Errorf("its header of %d bytes is too short", h.Length)
	}
	if err := h.checkFeatures(); err != nil {
		return err
	}
	switch {
	case h.ClusterBits < 9 || h.ClusterBits > 21:
		return fmt.Errorf("its clusters have 2^%d bytes, but 2^9 to 2^21 are supported", h.ClusterBits)
	case h.Size == 0:
		return errors.New("its disk is empty")
	case h.Size > uint64(max(maxBytes, 0)):
		return fmt.Errorf("its disk has %d bytes, but at most %d are allowed", h.Size, maxBytes)
	case int64(h.L1Size) < h.tables():
		return fmt.Errorf("its L1 table has %d entries, but a disk of %d bytes needs %d", h.L1Size, h.Size, h.tables())
	case !h.isOffset(h.L1Offset):
		return fmt.Errorf("its L1 table cannot be at %#x of the file", h.L1Offset)
	}
	return nil
}

func (h header) checkFeatures() error {
	has := func(feature uint64) bool { return h.Incompatible&feature != 0 }
	for _, refused := range []struct {
		is   bool
		what string
	}{
		// The creator of the file could have any file of the host read.
		{h.BackingOffset != 0, "it has a backing file: " + remedy},
		{has(hasDataFile), "it has an external data file: " + remedy},
		{h.Encryption != 0, "it is encrypted: " + remedy},
		{has(isCorrupt), "it is marked as corrupt: try qemu-img check -r all"},
		{has(isDirty), "it is marked as dirty, so it was not closed or is in use: try qemu-img check -r all"},
		{has(hasExtendedL2), "it has extended L2 entries: " + remedy},
		{has(^uint64(knownFeatures)), fmt.Sprintf("it has unknown features %#x: %s", h.Incompatible&^knownFeatures, remedy)},
		{h.Compression > zstdCompression, fmt.Sprintf("its compression of type %d is unknown: %s", h.Compression, remedy)},
		{
			has(hasCompressionType) != (h.Compression != zlibCompression),
			fmt.Sprintf("its features %#x do not fit its compression of type %d", h.Incompatible, h.Compression),
		},
	} {
		if refused.is {
			return errors.New(refused.what)
		}
	}
	return nil
}

// clusterSize returns the size of a cluster in bytes.
func (h header) clusterSize() int64 { return 1 << h.ClusterBits }

// perTable returns the number of clusters that an L2 table describes. A table fills one
// cluster.
func (h header) perTable() int64 { return h.clusterSize() / 8 }

// clusters returns the number of clusters of the disk; the last one may reach beyond its
// end.
func (h header) clusters() int64 { return (int64(h.Size)-1)>>h.ClusterBits + 1 }

// tables returns the maximum number of L2 tables.
func (h header) tables() int64 { return (h.clusters()-1)/h.perTable() + 1 }

// isOffset reports whether a cluster can begin at offset in the file. The first cluster
// contains the header.
func (h header) isOffset(offset uint64) bool {
	return offset != 0 && offset < maxOffset && offset%uint64(h.clusterSize()) == 0
}

// maxOffset is the first bit of table entries that has another meaning.
const maxOffset = 1 << 56
