package nspawn

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"

	"nomad-driver-nspawn/e2e/vm/vmtest"
	"nomad-driver-nspawn/nspawn/machine"
)

// loopMajor is the major number of loop devices, which exist without being used.
const loopMajor = 7

// newLoopNodes makes nodes of the first loop devices in a directory. Everybody may use
// them, but for the control group.
func newLoopNodes(t *testing.T, dir string, names ...string) {
	t.Helper()
	run(t, "modprobe", "loop")
	for minor, name := range names {
		path := filepath.Join(dir, name)
		must.NoError(t, unix.Mknod(path, unix.S_IFBLK, int(unix.Mkdev(loopMajor, uint32(minor)))))
		t.Cleanup(func() { must.NoError(t, os.Remove(path)) })
		must.NoError(t, os.Chmod(path, 0o666))
	}
}

// TestVMDevices uses devices that a machine may read, write, both, or make nodes of. A file
// system in the machine has a node of another one, which it may not use at all.
func TestVMDevices(t *testing.T) {
	vmtest.Require(t)
	m := newManager(t)
	accesses := []string{"r", "w", "rw", "rwm"}
	newLoopNodes(t, "/dev", "vm-r", "vm-w", "vm-rw", "vm-rwm")
	data, err := os.MkdirTemp("/var/tmp", "") // /tmp may forbid devices
	must.NoError(t, err)
	t.Cleanup(func() { must.NoError(t, os.Remove(data)) })
	newLoopNodes(t, data, "r", "w", "rw", "rwm", "none")
	for namespace, last := range map[bool]string{
		true:  "/dev/rwm yes yes no\n", // in a user namespace nobody makes nodes
		false: "/dev/rwm yes yes yes\n",
	} {
		spec := newMachine(t, m, fmt.Sprintf(`try() {
				out=$( ("$@") 2>&1 ) && result="$result yes" && return
				case $out in
				*"Operation not permitted"*) result="$result no" ;;
				*) result="$result ($out)" ;;
				esac
			}
			open_for_reading() { : <$1; }
			open_for_writing() { : >>$1; }
			make_node() { mknod /node b %d $1 && rm /node; }
			minor=0
			for node in /dev/r /dev/w /dev/rw /dev/rwm /data/none; do
				result=
				try open_for_reading $node
				try open_for_writing $node
				try make_node $minor
				minor=$((minor + 1))
				echo $node$result
			done`, loopMajor))
		spec.Root.UserNamespace = namespace
		spec.Binds = []machine.Bind{{Source: data, Destination: "/data"}}
		for _, access := range accesses {
			spec.Devices = append(spec.Devices, machine.Device{Source: "/dev/vm-" + access, Destination: "/dev/" + access, Access: access})
		}
		out := mustStart(t, m, spec)
		must.Eq(t, Exit{}, mustWait(t, m, spec.Machine))
		must.NoError(t, m.Remove(t.Context(), spec.Machine))
		must.Eq(t, "/dev/r yes no no\n/dev/w no yes no\n/dev/rw yes yes no\n"+last+"/data/none no no no\n", <-out.stdout, must.Sprint(namespace))
	}
	must.NoError(t, exec.Command("dd", "if="+data+"/none", "of=/dev/null").Run()) // the host may
}
