package nspawn

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/shoenig/test/must"

	"nomad-driver-nspawn/e2e/vm/vmtest"
	"nomad-driver-nspawn/nspawn/machine"
)

// newBlockDevice returns a block device of 8 MiB of memory, which everybody may use, but
// for the control group.
func newBlockDevice(t *testing.T) (path string) {
	t.Helper()
	file := filepath.Join("/dev/shm", strings.ReplaceAll(t.TempDir(), "/", "-"))
	must.NoError(t, os.WriteFile(file, nil, 0o600))
	must.NoError(t, os.Truncate(file, 8*mebibyte))
	out, err := exec.Command("losetup", "--show", "--find", file).Output()
	must.NoError(t, err)
	path = strings.TrimSpace(string(out))
	t.Cleanup(func() {
		run(t, "losetup", "--detach", path)
		must.NoError(t, os.Remove(file))
	})
	must.NoError(t, os.Chmod(path, 0o666))
	return path
}

// TestVMIOLimits measures how long a machine takes to read from block devices and to write
// to them. It needs a device for each limit: a file system would let writers wait for each
// other.
func TestVMIOLimits(t *testing.T) {
	vmtest.Require(t)
	m := newManager(t)
	spec := newMachine(t, m, `timed() {
			name=$1
			shift
			read begin rest </proc/uptime
			dd "$@" 2>/dev/null || exit 1
			read end rest </proc/uptime
			echo $name $begin $end
		}
		read_from() { timed $1-read if=/dev/$1 of=/dev/null iflag=direct $2 $3; }
		write_to() { timed $1-write if=/dev/zero of=/dev/$1 oflag=direct $2 $3; }
		read_from free bs=256k count=32
		write_to free bs=256k count=32
		read_from free bs=4k count=400
		write_to free bs=4k count=400

		write_to read-bytes bs=256k count=32
		read_from write-bytes bs=256k count=32
		write_to read-ops bs=4k count=400
		read_from write-ops bs=4k count=400

		read_from read-bytes bs=256k count=32 &
		write_to write-bytes bs=256k count=32 &
		read_from read-ops bs=4k count=400 &
		write_to write-ops bs=4k count=400 &
		wait`)
	limited := func(name string, value uint64) map[string]uint64 {
		device := newBlockDevice(t)
		spec.Devices = append(spec.Devices, machine.Device{Source: device, Destination: "/dev/" + name, Access: "rw"})
		return map[string]uint64{device: value}
	}
	limited("free", 0)
	spec.Limits.IO = machine.IOLimits{
		ReadBytes: limited("read-bytes", 2*mebibyte), WriteBytes: limited("write-bytes", 2*mebibyte),
		ReadOps: limited("read-ops", 100), WriteOps: limited("write-ops", 100),
	}
	out := mustStart(t, m, spec)
	must.Eq(t, Exit{}, mustWait(t, m, spec.Machine))
	must.NoError(t, m.Remove(t.Context(), spec.Machine))
	text := <-out.stdout
	t.Log(text)
	for line := range strings.Lines(text) {
		var name string
		var begin, end float64
		_, err := fmt.Sscan(line, &name, &begin, &end)
		must.NoError(t, err)
		switch name {
		case "read-bytes-read", "write-bytes-write", "read-ops-read", "write-ops-write":
			must.Between(t, 3.6, end-begin, 6, must.Sprint(name)) // on a busy host it takes longer than 4
		default:
			must.Less(t, 3, end-begin, must.Sprint(name))
		}
	}
	must.Eq(t, 12, strings.Count(text, "\n"))
}
