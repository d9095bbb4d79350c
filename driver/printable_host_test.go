package driver

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/shoenig/test/must"
)

// TestHostTextOfImage starts a program whose interpreter has a name that clears a terminal
// and is not UTF-8. The error says so in printable text, which Nomad can carry.
func TestHostTextOfImage(t *testing.T) {
	harness := newHarness(t, "")
	image := newImage(t, "usr", "etc")
	must.NoError(t, os.WriteFile(filepath.Join(image, "usr/program"), programOf(t, "/\x1b[2J\xff"), 0o755))
	task := newTask(t, harness, fmt.Sprintf("image = %q\nnetwork_veth = false\ncommand = \"/usr/program\"\n", image))
	_, _, err := harness.StartTask(task)
	must.ErrorContains(t, err, `its interpreter /\x1b[2J`+"\ufffd is not in the container")
}

// programOf returns a program of this architecture that needs an interpreter.
func programOf(t *testing.T, interpreter string) []byte {
	own, err := os.Executable()
	must.NoError(t, err)
	native, err := elf.Open(own)
	must.NoError(t, err)
	defer native.Close()
	const head, entry = 64, 56 // sizes of the header of a file and of a segment (elf(5))
	header := elf.Header64{
		Ident: [16]byte{0x7f, 'E', 'L', 'F', byte(elf.ELFCLASS64), byte(native.Data), byte(elf.EV_CURRENT)},
		Type:  uint16(elf.ET_EXEC), Machine: uint16(native.Machine), Version: uint32(elf.EV_CURRENT),
		Phoff: head, Ehsize: head, Phentsize: entry, Phnum: 1,
	}
	name := append([]byte(interpreter), 0)
	segment := elf.Prog64{Type: uint32(elf.PT_INTERP), Flags: uint32(elf.PF_R), Off: head + entry, Filesz: uint64(len(name)), Memsz: uint64(len(name))}
	var program bytes.Buffer
	must.NoError(t, binary.Write(&program, native.ByteOrder, header))
	must.NoError(t, binary.Write(&program, native.ByteOrder, segment))
	program.Write(name)
	return program.Bytes()
}
