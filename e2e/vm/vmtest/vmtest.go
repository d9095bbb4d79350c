// Package vmtest marks tests that need cgroup controllers, swap or another
// kernel: a virtual machine.
package vmtest

import (
	"os"
	"testing"

	"nomad-driver-nspawn/e2e/host/hosttest"
)

// Require skips a test that does not run in the virtual machine of e2e/vm, which offers
// everything that a disposable host does. `vm test`, which runs the tests, counts a
// skipped test as a failure.
func Require(t testing.TB) {
	t.Helper()
	if os.Getenv("NSPAWN_VM") != "1" {
		t.Skip("SKIPPED: needs a virtual machine; run `go run ./e2e/vm test` on this package")
	}
	hosttest.Require(t)
}
