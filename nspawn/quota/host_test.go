package quota

import (
	"os/exec"
	"testing"

	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"

	"nomad-driver-nspawn/e2e/host/hosttest"
)

// TestHostMachineIsLimited runs a machine on btrfs, the only file system that has quotas
// in every kernel that supports it.
func TestHostMachineIsLimited(t *testing.T) {
	hosttest.Require(t)
	dir := mountImage(t, unpackImage(t, "btrfs"), "rw")
	enableQgroups(t, dir)
	must.NoError(t, Make(dir+"/rw", 8<<20, testID))
	target := mountOverlay(t, hosttest.Busybox, dir+"/rw")
	out, err := exec.Command("systemd-run", "--quiet", "--wait", "--pipe", "--collect", "--property=PrivateMounts=yes",
		"--property=Delegate=yes", "--", "systemd-nspawn", "--keep-unit", "--quiet", "--settings=no", "--register=no",
		"--machine=quota-test", "--directory="+target, "--link-journal=no", "--resolv-conf=off", "--timezone=off",
		"--console=pipe", "--as-pid2", "sh", "-ec", "dd if=/dev/zero of=/big bs=64k count=1000 2>&1 | grep -o 'quota exceeded'").CombinedOutput()
	must.NoError(t, err, must.Sprint(string(out)))
	must.NoError(t, unix.Unmount(target, 0))
	must.Eq(t, "quota exceeded\n", string(out))
}
