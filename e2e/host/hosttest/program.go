package hosttest

import (
	"os"
	"os/exec"
	"testing"

	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"
)

// Program returns the path of a program, after its Debian package was installed
// if need be. Where that takes root that is not there, it ends the test as
// RequireRoot does.
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

// lockPackages waits for the tests of other packages that install something:
// apt-get update itself fails instead. The lock is none of apt's, which are
// fcntl(2)'s.
func lockPackages(t testing.TB) (unlock func()) {
	t.Helper()
	dir, err := os.Open("/var/lib/apt/lists")
	must.NoError(t, err)
	must.NoError(t, unix.Flock(int(dir.Fd()), unix.LOCK_EX))
	return func() { _ = dir.Close() }
}
