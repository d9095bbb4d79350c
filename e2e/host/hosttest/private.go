package hosttest

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

const inPrivate = "NSPAWN_TEST_PRIVATE"

// RunPrivate runs the tests of a package, for its TestMain, in new namespaces of a kind
// (CLONE_NEW…, clone(2)), so that they do not change the machine. Without root, they run
// without new namespaces. RunPrivate does not return.
func RunPrivate(m *testing.M, namespaces uintptr) {
	if os.Geteuid() != 0 || os.Getenv(inPrivate) != "" {
		os.Exit(m.Run())
	}
	again := exec.Command("/proc/self/exe", os.Args[1:]...)
	again.Env = append(os.Environ(), inPrivate+"=1")
	again.Stdin, again.Stdout, again.Stderr = os.Stdin, os.Stdout, os.Stderr
	// For a mount namespace, Unshare also makes its mounts private.
	again.SysProcAttr = &syscall.SysProcAttr{Unshareflags: namespaces, Pdeathsig: unix.SIGKILL}
	runtime.LockOSThread() // Pdeathsig is about this thread.
	if err := again.Run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// RunPrivateOutside is like RunPrivate, but does nothing special in a disposable host: the
// host belongs to the tests anyway, and its systemd must see what they mount.
func RunPrivateOutside(m *testing.M, namespaces uintptr) {
	if os.Getenv("NSPAWN_HOST_TESTS") != "" {
		os.Exit(m.Run())
	}
	RunPrivate(m, namespaces)
}

// RequireRoot ends a test that does not run as root: the test is skipped, or fails if
// CI=true forbids that.
func RequireRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("CI") == "true" {
		t.Fatal("this test needs root")
	}
	t.Skip("SKIPPED: this test needs root")
}
