// Package hosttest marks tests that need a real systemd of their own.
package hosttest

import (
	"os"
	"testing"

	"nomad-driver-nspawn/e2e/host"
)

// Guest images, read-only in every host that the test command boots: a tree with a static
// busybox, a tree with a Debian that boots, the same made by mkosi, and the latter as a
// disk image.
const (
	Busybox     = "/srv/busybox"
	BusyboxDisk = "/srv/busybox.raw" // Busybox as an ext4 file system
	Debian      = "/srv/debian"
	Inits       = "/srv/inits" // has a tree for each of host.Inits
	MkosiTree   = "/srv/mkosi"
	MkosiDisk   = "/srv/mkosi.raw"
)

// PluginVariable is the environment variable that contains the path of the built plugin.
const PluginVariable = "NSPAWN_TEST_PLUGIN"

// Require ends a test that does not run in a disposable host: the test is skipped, or
// fails if NSPAWN_HOST_TESTS=1 forbids that.
func Require(t testing.TB) {
	t.Helper()
	if _, err := os.Stat(host.Marker); err == nil {
		return
	}
	if os.Getenv("NSPAWN_HOST_TESTS") == "1" {
		t.Fatalf("NSPAWN_HOST_TESTS=1 but %s is missing: this is not a disposable host", host.Marker)
	}
	t.Skip("SKIPPED: needs a disposable host; run `go run ./e2e/host/cmd test` on this package")
}
