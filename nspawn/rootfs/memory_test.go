package rootfs

import (
	"fmt"
	"os"
	"syscall"
	"testing"

	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"
)

func TestMemory(t *testing.T) {
	for _, base := range []uint32{0, base1} {
		t.Run(fmt.Sprint(base), func(t *testing.T) {
			o := newOverlay(t, base)
			o.RW, o.Memory = "", 8<<20
			before := mounts(t)
			must.NoError(t, o.Mount())
			must.SliceLen(t, len(before)+1, mounts(t))

			must.Eq(t, owned(base, base, 0o751), owner(t, o.Target))
			must.Eq(t, owned(base, base+42, 0o640), owner(t, o.Target+"/etc/shadow"))
			must.NoError(t, os.WriteFile(o.Target+"/etc/shadow", []byte("changed"), 0))
			must.Eq(t, owned(base, base+42, 0o640), owner(t, o.Target+"/etc/shadow"))
			must.NoError(t, os.Remove(o.Target+"/var/www"))
			must.FileContains(t, o.Lower[0]+"/etc/shadow", "secret")

			must.ErrorIs(t, fill(o.Target+"/big", 16<<20), unix.ENOSPC)
			must.NoError(t, os.Remove(o.Target+"/big"))
			must.NoError(t, fill(o.Target+"/fits", 7<<20))

			must.NoError(t, Unmount(o.Target))
			must.Eq(t, before, mounts(t))
			must.NoError(t, o.Mount())
			must.FileNotExists(t, o.Target+"/fits") // it was never anywhere else
		})
	}
}

// fill writes to a new file until it has this size.
func fill(path string, size int) error {
	file, err := os.Create(path)
	if err != nil {
		return err
	}
	defer file.Close()
	chunk := make([]byte, 1<<16)
	for range size / len(chunk) {
		if _, err := file.Write(chunk); err != nil {
			return err
		}
	}
	return syscall.Fsync(int(file.Fd()))
}
