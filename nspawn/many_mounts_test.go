package nspawn

import (
	"fmt"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"
)

// TestHostStartAmongManyMounts checks that the cost of a start does not grow with the
// number of mounts on the host.
func TestHostStartAmongManyMounts(t *testing.T) {
	m := newManager(t)
	dir := t.TempDir()
	measure := func() time.Duration {
		var all []time.Duration
		for range 9 {
			spec := newMachine(t, m, "true")
			begin := time.Now()
			mustStart(t, m, spec)
			all = append(all, time.Since(begin))
			mustWait(t, m, spec.Machine)
			must.NoError(t, m.Remove(t.Context(), spec.Machine))
		}
		return slices.Min(all) // the others show the load of the host, too
	}
	unmount := func() {
		for i := range 400 {
			_ = unix.Unmount(fmt.Sprintf("%s/%d", dir, i), unix.MNT_DETACH)
		}
	}
	t.Cleanup(unmount)
	measure() // warm
	before := measure()
	for i := range 400 {
		at := fmt.Sprintf("%s/%d", dir, i)
		must.NoError(t, os.Mkdir(at, 0o700))
		must.NoError(t, unix.Mount("tmpfs", at, "tmpfs", 0, "size=4k"))
	}
	with := measure()
	unmount()
	measure()                         // systemd forgets them
	without := max(before, measure()) // the load of the host changes meanwhile
	t.Logf("fastest start: %v, with 400 other mounts %v", without, with)
	must.Less(t, without*3/2+20*time.Millisecond, with)
}
