package hosttest

import (
	"os"
	"os/exec"
	"testing"

	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"
)

// Program returns the path of a program. It installs the Debian package of the program if
// needed. If that takes root privileges that are missing, it ends the test as RequireRoot
// does.
func Program(t testing.TB, program, pkg string) string {
	t.Helper()
	if path, err := exec.LookPath(program); err == nil {
		return path
	}
	RequireRoot(t)
	defer lockPackages(t)()
	for _, args := range [][]string{{"update", "-q"}, {"install", "-qy", "--no-install-recommends", pkg}} {
		cmd := exec.Command("apt-get", args...)
		cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive")
		out, err := cmd.CombinedOutput()
		must.NoError(t, err, must.Sprint(string(out)))
	}
	path, err := exec.LookPath(program)
	must.NoError(t, err)
	return path
}

// lockPackages waits while tests of other packages install something: apt-get update
// itself would fail instead. The lock is not one of apt's own, which are fcntl(2) locks.
func lockPackages(t testing.TB) (unlock func()) {
	t.Helper()
	dir, err := os.Open("/var/lib/apt/lists")
	must.NoError(t, err)
	must.NoError(t, unix.Flock(int(dir.Fd()), unix.LOCK_EX))
	return func() { _ = dir.Close() }
}
