package tree

import (
	"testing"

	"golang.org/x/sys/unix"

	"nomad-driver-nspawn/e2e/host/hosttest"
)

// TestMain runs the tests in a mount namespace of their own. In a disposable host that is
// not necessary, and its systemd must see the mounts.
func TestMain(m *testing.M) {
	hosttest.RunPrivateOutside(m, unix.CLONE_NEWNS)
}
