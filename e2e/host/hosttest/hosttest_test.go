package hosttest_test

import (
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/shoenig/test/must"

	"nomad-driver-nspawn/e2e/host/hosttest"
)

// TestHostSystemd checks what Require promises: systemd is PID 1 and has booted, and the
// package's files are available.
func TestHostSystemd(t *testing.T) {
	hosttest.Require(t)
	must.NoError(t, exec.Command("systemctl", "is-active", "multi-user.target").Run())
	comm, err := os.ReadFile("/proc/1/comm")
	must.NoError(t, err)
	must.EqOp(t, "systemd", strings.TrimSpace(string(comm)))
	for _, path := range []string{
		"hosttest.go", hosttest.Busybox + "/bin/sh",
		hosttest.Debian + "/sbin/init", hosttest.MkosiTree + "/sbin/init", hosttest.MkosiDisk,
	} {
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

func TestRequireOutsideOfAHost(t *testing.T) {
	if _, err := os.Stat("/run/disposable-host"); err == nil {
		t.Skip("SKIPPED: runs in a disposable host")
	}
	for value, want := range map[string]string{"": "skip", "1": "fail"} {
		t.Setenv("NSPAWN_HOST_TESTS", value)
		v := &verdict{TB: t}
		hosttest.Require(v)
		must.EqOp(t, want, v.words[0])
	}
}
