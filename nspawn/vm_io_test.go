package nspawn

import (
	"fmt"
	"strings"
	"testing"

	"github.com/shoenig/test/must"

	"nomad-driver-nspawn/e2e/vm/vmtest"
	"nomad-driver-nspawn/nspawn/machine"
)

// TestVMIOLimits measures how long machines take to read from a block device and to write
// to it, past the page cache.
func TestVMIOLimits(t *testing.T) {
	vmtest.Require(t)
	m := newManager(t)
	const script = `dd if=/dev/zero of=/file bs=1M count=8 2>/dev/null; sync /file
		timed() {
			read begin rest </proc/uptime
			dd "$@" 2>/dev/null || exit 1
			read end rest </proc/uptime
			echo $begin $end
		}
		timed bs=256k count=32 if=/file of=/dev/null iflag=direct
		timed bs=256k count=32 if=/dev/zero of=/other oflag=direct
		timed bs=4k count=400 if=/file of=/dev/null iflag=direct
		timed bs=4k count=400 if=/dev/zero of=/other oflag=direct`
	limit := func(path string, value uint64) map[string]uint64 { return map[string]uint64{path: value} }
	const disk = "/dev/vda" // everything on the host is on it
	for _, c := range []struct {
		limits machine.IOLimits
		// The seconds that each part of the script takes; 0 means less than 2.
		seconds [4]float64
	}{
		{machine.IOLimits{}, [4]float64{}},
		{machine.IOLimits{ReadBytes: limit(disk, 2*mebibyte), WriteOps: limit(disk, 100)}, [4]float64{4, 0, 0, 4}},
		{machine.IOLimits{WriteBytes: limit("/var/lib", 2*mebibyte), ReadOps: limit(disk, 100)}, [4]float64{0, 4, 4, 0}},
	} {
		spec := newMachine(t, m, script)
		spec.Limits.IO = c.limits
		out := mustStart(t, m, spec)
		must.Eq(t, Exit{}, mustWait(t, m, spec.Machine))
		must.NoError(t, m.Remove(t.Context(), spec.Machine))
		lines := strings.Split(strings.TrimSpace(<-out.stdout), "\n")
		must.Len(t, len(c.seconds), lines)
		for i, want := range c.seconds {
			var begin, end float64
			_, err := fmt.Sscan(lines[i], &begin, &end)
			must.NoError(t, err)
			if want == 0 {
				t.Logf("want less than 2, got %.2f", end-begin)
				must.Less(t, 2, end-begin)
			} else {
				about(t, want, end-begin)
			}
		}
	}
}
