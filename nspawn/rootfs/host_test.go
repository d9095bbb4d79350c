package rootfs

import (
	"fmt"
	"os"
	"os/exec"
	"testing"

	"github.com/shoenig/test/must"

	"nomad-driver-nspawn/e2e/host/hosttest"
	"nomad-driver-nspawn/nspawn/idmap"
	"nomad-driver-nspawn/nspawn/mounts"
	"nomad-driver-nspawn/nspawn/tree"
)

// nspawn runs a command in a machine on dir, in a unit of the host's systemd, and returns
// its output.
func nspawn(t *testing.T, dir string, base uint32, command string) string {
	t.Helper()
	out, err := exec.Command("systemd-run", "--quiet", "--wait", "--pipe", "--collect", "--property=PrivateMounts=yes",
		"--property=Delegate=yes", "--", "systemd-nspawn", "--keep-unit", "--quiet", "--settings=no", "--register=no",
		"--machine=rootfs-test", "--directory="+dir, fmt.Sprintf("--private-users=%d:%d", base, idmap.RangeSize),
		"--private-users-ownership=off", "--link-journal=no", "--resolv-conf=off", "--timezone=off", "--console=pipe",
		"--as-pid2", "sh", "-ec", command).CombinedOutput()
	must.NoError(t, err, must.Sprint(string(out)))
	return string(out)
}

// TestHostMachine runs real machines one after another on one root, with different bases.
func TestHostMachine(t *testing.T) {
	hosttest.Require(t)
	top := t.TempDir()
	o := Overlay{Lower: []string{hosttest.Busybox}, RW: top + "/rw", Target: top + "/merged", UIDBase: base1}
	t.Cleanup(func() { must.NoError(t, mounts.Unmount(o.Target)) })
	before := hosttest.Mounts(t)
	must.NoError(t, o.Mount())
	seen, err := os.ReadFile("/proc/1/mountinfo")
	must.NoError(t, err)
	must.StrContains(t, string(seen), " "+o.Target+" ")

	out := nspawn(t, o.Target, base1, `
		cat /proc/self/uid_map | tr -s ' '
		echo mine >/mine; chown 1000:1001 /mine
		mkdir /srv; mv /etc/passwd /srv; rm -r /home
		stat -c %u:%g / /etc /etc/group /mine /srv/passwd`)
	must.Eq(t, fmt.Sprintf(" 0 %d 65536\n0:0\n0:0\n0:0\n1000:1001\n0:0\n", base1), out)
	must.Eq(t, "1000:1001 0644", hosttest.Owner(t, o.RW+"/upper/mine"))
	must.Eq(t, "0:0 0644", hosttest.Owner(t, o.RW+"/upper/srv/passwd"))
	must.FileExists(t, hosttest.Busybox+"/etc/passwd")

	must.NoError(t, mounts.Unmount(o.Target))
	o.UIDBase = base2
	must.NoError(t, o.Mount())
	must.Eq(t, "1000:1001\nmine\n", nspawn(t, o.Target, base2, "stat -c %u:%g /mine; cat /mine; test ! -e /home"))

	must.NoError(t, mounts.Unmount(o.Target))
	must.Eq(t, before, hosttest.Mounts(t))
	must.NoError(t, tree.Remove(o.RW))
}
