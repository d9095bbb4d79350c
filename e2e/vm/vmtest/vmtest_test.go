package vmtest_test

import (
	"os"
	"strings"
	"testing"

	"github.com/shoenig/test/must"

	"nomad-driver-nspawn/e2e/host/hosttest"
	"nomad-driver-nspawn/e2e/vm/vmtest"
)

// TestVMOffers checks what Require promises.
func TestVMOffers(t *testing.T) {
	vmtest.Require(t)
	controllers, err := os.ReadFile("/sys/fs/cgroup/cgroup.controllers")
	must.NoError(t, err)
	must.SliceContainsSubset(t, strings.Fields(string(controllers)), []string{"cpu", "cpuset", "io", "memory", "pids"})
	swaps, err := os.ReadFile("/proc/swaps")
	must.NoError(t, err)
	must.StrContains(t, string(swaps), "/swap")
	comm, err := os.ReadFile("/proc/1/comm")
	must.NoError(t, err)
	must.EqOp(t, "systemd\n", string(comm))
	for _, path := range []string{hosttest.Busybox + "/bin/sh", hosttest.Debian + "/sbin/init"} {
		_, err := os.Lstat(path)
		must.NoError(t, err)
	}
}

// verdict records the first call that Require makes. Unlike a real test, it does not end
// the goroutine.
type verdict struct {
	testing.TB
	words []string
}

func (v *verdict) Helper()               {}
func (v *verdict) Skip(...any)           { v.words = append(v.words, "skip") }
func (v *verdict) Fatalf(string, ...any) { v.words = append(v.words, "fail") }

func TestRequireOutsideOfAVM(t *testing.T) {
	if _, err := os.Stat("/run/disposable-host"); err == nil {
		t.Skip("SKIPPED: runs in a disposable host")
	}
	t.Setenv("NSPAWN_HOST_TESTS", "1")
	for value, want := range map[string]string{"": "skip", "1": "fail"} {
		t.Setenv("NSPAWN_VM", value)
		v := &verdict{TB: t}
		vmtest.Require(v)
		must.EqOp(t, want, v.words[0])
	}
}
