package idmap

import (
	"bufio"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/shoenig/test/must"

	"nomad-driver-nspawn/e2e/host/hosttest"
)

// TestHostRangeOfNspawn lets a real systemd-nspawn pick a range, and expects that the
// range is not free until that machine has ended.
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
