package rootfs

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/shoenig/test/must"

	"nomad-driver-nspawn/e2e/host/hosttest"
)

// nspawn runs a command in a machine on dir, as a unit of the host's systemd,
// and returns what it prints.
func nspawn(t *testing.T, dir string, base uint32, command string) string {
	t.Helper()
	out, err := exec.Command("systemd-run", "--quiet", "--wait", "--pipe", "--collect", "--property=PrivateMounts=yes",
		"--property=Delegate=yes", "--", "systemd-nspawn", "--keep-unit", "--quiet", "--settings=no", "--register=no",
		"--machine=rootfs-test", "--directory="+dir, fmt.Sprintf("--private-users=%d:%d", base, RangeSize),
		"--private-users-ownership=off", "--link-journal=no", "--resolv-conf=off", "--timezone=off", "--console=pipe",
		"--as-pid2", "sh", "-ec", command).CombinedOutput()
	must.NoError(t, err, must.Sprint(string(out)))
	return string(out)
}

// TestHostMachine runs real machines on one root, one after the other with
// different bases.
func TestHostMachine(t *testing.T) {
	hosttest.Require(t)
	top := t.TempDir()
	o := Overlay{Lower: []string{hosttest.Busybox}, RW: top + "/rw", Target: top + "/merged", UIDBase: base1}
	t.Cleanup(func() { must.NoError(t, Unmount(o.Target)) })
	before := mounts(t)
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
	must.Eq(t, "1000:1001 0644", owner(t, o.RW+"/upper/mine"))
	must.Eq(t, "0:0 0644", owner(t, o.RW+"/upper/srv/passwd"))
	must.FileExists(t, hosttest.Busybox+"/etc/passwd")

	must.NoError(t, Unmount(o.Target))
	o.UIDBase = base2
	must.NoError(t, o.Mount())
	must.Eq(t, "1000:1001\nmine\n", nspawn(t, o.Target, base2, "stat -c %u:%g /mine; cat /mine; test ! -e /home"))

	must.NoError(t, Unmount(o.Target))
	must.Eq(t, before, mounts(t))
	must.NoError(t, Remove(o.RW))
}

// TestHostRangeOfNspawn lets a real systemd-nspawn pick a range and expects it
// not to be free until that has ended.
func TestHostRangeOfNspawn(t *testing.T) {
	hosttest.Require(t)
	dir := filepath.Join(t.TempDir(), "guest")
	out, err := exec.Command("cp", "-a", hosttest.Busybox, dir).CombinedOutput()
	must.NoError(t, err, must.Sprint(string(out)))
	machine := exec.Command("systemd-nspawn", "--keep-unit", "--quiet", "--settings=no", "--register=no", "--directory="+dir,
		"--machine=picks-itself", "--private-users=pick", "--private-users-ownership=map", "--link-journal=no",
		"--resolv-conf=off", "--timezone=off", "--console=pipe", "--as-pid2", "sh", "-c", "cat /proc/self/uid_map; sleep 1000")
	machine.Stderr = os.Stderr
	stdout, err := machine.StdoutPipe()
	must.NoError(t, err)
	must.NoError(t, machine.Start())
	defer machine.Process.Kill()
	line, err := bufio.NewReader(stdout).ReadString('\n')
	must.NoError(t, err)
	base, err := strconv.ParseUint(strings.Fields(line)[1], 10, 32)
	must.NoError(t, err)

	must.True(t, Ranges{}.usedByNspawn(uint32(base)))
	must.NoError(t, machine.Process.Kill())
	_ = machine.Wait()
	must.False(t, Ranges{}.usedByNspawn(uint32(base)))
	must.False(t, Ranges{}.usedByNspawn(uint32(base)+RangeSize))
}

// TestHostMachineIsLimited runs a machine on btrfs, the only file system whose
// quotas each kernel with it has.
func TestHostMachineIsLimited(t *testing.T) {
	hosttest.Require(t)
	dir := mountImage(t, unpackImage(t, "btrfs"), "rw")
	enableQgroups(t, dir)
	o := Overlay{Lower: []string{hosttest.Busybox}, RW: dir + "/rw", Target: t.TempDir(), UIDBase: base1}
	must.NoError(t, MakeLimited(o.RW, 8<<20, base1))
	must.NoError(t, o.Mount())
	out := nspawn(t, o.Target, base1, "dd if=/dev/zero of=/big bs=64k count=1000 2>&1 | grep -o 'quota exceeded'")
	must.NoError(t, Unmount(o.Target))
	must.Eq(t, "quota exceeded\n", out)
	must.NoError(t, Unlimit(o.RW))
	must.NoError(t, Remove(o.RW))
}
