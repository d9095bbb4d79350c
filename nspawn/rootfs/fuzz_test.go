package rootfs

import (
	"encoding/binary"
	"testing"

	"github.com/shoenig/test/must"
)

// FuzzShift shifts whatever the attributes of a file may hold: a disk image has any. No owner
// that is named there is another machine's or the host's afterwards, and a second shift
// changes nothing.
func FuzzShift(f *testing.F) {
	f.Add([]byte{2, 0, 0, 0, 1, 0, 7, 0, 255, 255, 255, 255, 2, 0, 7, 0, 232, 3, 0, 0, 8, 0, 5, 0, 0, 0, 9, 0}, byte(1))
	f.Add([]byte{1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}, byte(200))
	f.Add([]byte{1, 0, 0, 3, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 7, 0}, byte(7))
	f.Add([]byte{2, 0, 0, 0, 2, 0}, byte(3))
	f.Fuzz(func(t *testing.T, value []byte, machine byte) {
		base := uint32(machine) << 16
		isOwn := func(id uint32) bool { return id>>16 == base>>16 }

		acl := append([]byte(nil), value...)
		shiftACL(acl, base)
		must.Eq(t, len(value), len(acl))
		for i := 4; i+8 <= len(acl); i += 8 {
			tag := binary.LittleEndian.Uint16(acl[i:])
			must.Eq(t, binary.LittleEndian.Uint32(value[i:]), binary.LittleEndian.Uint32(acl[i:])) // tag and permissions
			if id := binary.LittleEndian.Uint32(acl[i+4:]); (tag == 2 || tag == 8) && !isOwn(id) {
				t.Errorf("%x names %d", acl, id)
			}
		}
		again := append([]byte(nil), acl...)
		shiftACL(again, base)
		must.Eq(t, acl, again)

		capabilities := shiftCapabilities(append([]byte(nil), value...), base)
		if len(capabilities) == 24 && capabilities[3] == 3 && !isOwn(binary.LittleEndian.Uint32(capabilities[20:])) {
			t.Errorf("%x is of another root", capabilities)
		}
	})
}
