package hosttest

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode/utf16"

	"github.com/google/uuid"
	"github.com/shoenig/test/must"
)

// Partition types from the Discoverable Partitions Specification.
const (
	RootX86       = "4f68bce3-e8cd-4db1-96e7-fbcaf984b709" // root of x86-64
	RootX86Verity = "2c7357ed-ebd2-46d9-aec1-23d437ec2bf5" // dm-verity hashes of that root
	Home          = "933ac7e1-2eb4-4f13-b844-0e14e2aef915" // /home
)

// CopyOf returns a copy of a file for this test only.
func CopyOf(t testing.TB, file string) string {
	t.Helper()
	content, err := os.ReadFile(file)
	must.NoError(t, err)
	own := filepath.Join(t.TempDir(), "fs.raw")
	must.NoError(t, os.WriteFile(own, content, 0o644))
	return own
}

// Loops returns the loop devices of an image.
func Loops(t testing.TB, image string) (found []string) {
	t.Helper()
	files, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	must.NoError(t, err)
	for _, file := range files {
		// A device may disappear in the meantime.
		if text, err := os.ReadFile(file); err == nil && strings.TrimSpace(string(text)) == image {
			found = append(found, file)
		}
	}
	return found
}

// Partition is a partition of a disk.
type Partition struct {
	Type, Content string
	ID            string // a UUID; any if it is empty
}

const (
	sector   = 512
	tableLBA = 2   // of the partition entries, after the protective MBR and the header
	entries  = 128 // of 128 bytes each
	dataLBA  = 2048
)

// Disk creates a disk image with a GPT (UEFI specification, 5.3). The contents of the
// partitions come from files.
func Disk(t testing.TB, partitions ...Partition) string {
	t.Helper()
	var data bytes.Buffer
	table := make([]byte, entries*128)
	for i, p := range partitions {
		content, err := os.ReadFile(p.Content)
		must.NoError(t, err)
		first := uint64(dataLBA + data.Len()/sector)
		data.Write(content)
		entry := table[i*128:]
		copy(entry, mixedEndian(uuid.MustParse(p.Type)))
		id := uuid.New()
		if p.ID != "" {
			id = uuid.MustParse(p.ID)
		}
		copy(entry[16:], mixedEndian(id))
		binary.LittleEndian.PutUint64(entry[32:], first)
		binary.LittleEndian.PutUint64(entry[40:], uint64(dataLBA+data.Len()/sector-1))
		for j, unit := range utf16.Encode([]rune("part")) {
			binary.LittleEndian.PutUint16(entry[56+2*j:], unit)
		}
	}
	const backup = entries*128/sector + 1
	last := uint64(dataLBA+data.Len()/sector) + backup - 1
	disk := make([]byte, (last+1)*sector)
	copy(disk[dataLBA*sector:], data.Bytes())
	// The protective MBR, 5.2.3.
	disk[446+4], disk[510], disk[511] = 0xee, 0x55, 0xaa
	binary.LittleEndian.PutUint32(disk[446+8:], 1)
	binary.LittleEndian.PutUint32(disk[446+12:], uint32(last))
	id := uuid.New()
	copy(disk[tableLBA*sector:], table)
	copy(disk[sector:], gptHeader(id, table, 1, last, tableLBA))
	copy(disk[(last-backup+1)*sector:], table)
	copy(disk[last*sector:], gptHeader(id, table, last, 1, last-backup+1))
	image := filepath.Join(t.TempDir(), "disk.raw")
	must.NoError(t, os.WriteFile(image, disk, 0o644))
	return image
}

// gptHeader returns the GPT header at an LBA, which refers to the other header.
func gptHeader(id uuid.UUID, table []byte, at, other, tableAt uint64) []byte {
	header := make([]byte, 92)
	copy(header, "EFI PART")
	for offset, value := range map[int]uint32{8: 0x10000, 12: 92, 80: entries, 84: 128, 88: crc32.ChecksumIEEE(table)} {
		binary.LittleEndian.PutUint32(header[offset:], value)
	}
	last := max(at, other)
	for offset, value := range map[int]uint64{24: at, 32: other, 40: dataLBA, 48: last - entries*128/sector - 1, 72: tableAt} {
		binary.LittleEndian.PutUint64(header[offset:], value)
	}
	copy(header[56:], mixedEndian(id))
	binary.LittleEndian.PutUint32(header[16:], crc32.ChecksumIEEE(header))
	return header
}

// mixedEndian is how GPT stores a GUID: the first three fields little-endian.
func mixedEndian(id uuid.UUID) []byte {
	b := bytes.Clone(id[:])
	for _, field := range [][]byte{b[0:4], b[4:6], b[6:8]} {
		for i, j := 0, len(field)-1; i < j; i, j = i+1, j-1 {
			field[i], field[j] = field[j], field[i]
		}
	}
	return b
}
