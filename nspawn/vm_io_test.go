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
	const (
		script = `timed() {
				read begin rest </proc/uptime
				dd "$@" 2>/dev/null || exit 1
				read end rest </proc/uptime
				echo $begin $end
			}
			`
		disk  = "/dev/vda" // everything on the host is on it
		make  = "dd if=/dev/zero of=/file bs=1M count=8 2>/dev/null; sync /file\n"
		read  = "timed if=/file of=/dev/null iflag=direct "
		write = "timed if=/dev/zero of=/file oflag=direct "
		// How much is 4 seconds' worth.
		bytes = "bs=256k count=32\n"
		ops   = "bs=4k count=400\n"
	)
	limit := func(path string, value uint64) map[string]uint64 { return map[string]uint64{path: value} }
	type run struct {
		limits  machine.IOLimits
		script  string
		machine string
		out     output
	}
	runs := []run{
		{script: make + read + bytes + read + ops + write + bytes + write + ops},
		{limits: machine.IOLimits{ReadBytes: limit(disk, 2*mebibyte)}, script: make + read + bytes},
		{limits: machine.IOLimits{WriteBytes: limit("/var/lib", 2*mebibyte)}, script: write + bytes}, // a path on the disk
		{limits: machine.IOLimits{ReadOps: limit(disk, 100)}, script: make + read + ops},
		{limits: machine.IOLimits{WriteOps: limit(disk, 100)}, script: write + ops},
	}
	for i, r := range runs {
		spec := newMachine(t, m, script+r.script)
		spec.Limits.IO = r.limits
		runs[i].machine, runs[i].out = spec.Machine, mustStart(t, m, spec)
	}
	for i, r := range runs {
		must.Eq(t, Exit{}, mustWait(t, m, r.machine))
		must.NoError(t, m.Remove(t.Context(), r.machine))
		for line := range strings.Lines(<-r.out.stdout) {
			var begin, end float64
			_, err := fmt.Sscan(line, &begin, &end)
			must.NoError(t, err)
			if i == 0 { // without a limit
				t.Logf("want less than 2, got %.2f", end-begin)
				must.Less(t, 2, end-begin)
			} else {
				about(t, 4, end-begin)
			}
		}
	}
}
