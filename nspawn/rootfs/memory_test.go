package rootfs

import (
	"fmt"
	"os"
	"testing"

	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"

	"nomad-driver-nspawn/e2e/host/hosttest"
	"nomad-driver-nspawn/nspawn/mounts"
)

func TestMemory(t *testing.T) {
	for _, base := range []uint32{0, base1} {
		t.Run(fmt.Sprint(base), func(t *testing.T) {
			o := newOverlay(t, base)
			o.RW, o.Memory = "", 8<<20
			before := hosttest.Mounts(t)
			must.NoError(t, o.Mount())
			must.SliceLen(t, len(before)+1, hosttest.Mounts(t))

			must.Eq(t, hosttest.Owned(base, base, 0o751), hosttest.Owner(t, o.Target))
			must.Eq(t, hosttest.Owned(base, base+42, 0o640), hosttest.Owner(t, o.Target+"/etc/shadow"))
			must.NoError(t, os.WriteFile(o.Target+"/etc/shadow", []byte("changed"), 0))
			must.Eq(t, hosttest.Owned(base, base+42, 0o640), hosttest.Owner(t, o.Target+"/etc/shadow"))
			must.NoError(t, os.Remove(o.Target+"/var/www"))
			must.FileContains(t, o.Lower[0]+"/etc/shadow", "secret")

			must.ErrorIs(t, hosttest.Fill(o.Target+"/big", 16<<20), unix.ENOSPC)
			must.NoError(t, os.Remove(o.Target+"/big"))
			must.NoError(t, hosttest.Fill(o.Target+"/fits", 7<<20))

			must.NoError(t, mounts.Unmount(o.Target))
			must.Eq(t, before, hosttest.Mounts(t))
			must.NoError(t, o.Mount())
			must.FileNotExists(t, o.Target+"/fits") // it was nowhere else
		})
	}
}

// fill writes to a new file until the file has this size.
