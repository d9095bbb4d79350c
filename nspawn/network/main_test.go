package network

import (
	"testing"

	"golang.org/x/sys/unix"

	"nomad-driver-nspawn/e2e/host/hosttest"
)

// TestMain runs the tests in a network namespace of their own, which serves as their
// host. A disposable host is used as it is.
func TestMain(m *testing.M) {
	hosttest.RunPrivateOutside(m, unix.CLONE_NEWNET)
}
