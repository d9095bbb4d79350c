package enter

import (
	"os"
	"testing"

	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"
)

func TestReceivedFile(t *testing.T) {
	null := func() int {
		fd, err := unix.Open("/dev/null", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		must.NoError(t, err)
		return fd
	}
	file, err := receivedFile(unix.UnixRights(null()))
	must.NoError(t, err)
	must.NoError(t, file.Close())

	_, err = receivedFile(nil)
	must.EqError(t, err, "receive terminal: got 0 descriptors instead of 1")

	before, err := os.ReadDir("/proc/self/fd")
	must.NoError(t, err)
	_, err = receivedFile(append(unix.UnixRights(null()), unix.UnixRights(null(), null())...))
	must.EqError(t, err, "receive terminal: got 3 descriptors instead of 1")
	after, err := os.ReadDir("/proc/self/fd")
	must.NoError(t, err)
	must.EqOp(t, len(before), len(after))

	_, err = receivedFile(unix.UnixCredentials(&unix.Ucred{}))
	must.ErrorContains(t, err, "receive terminal: ")
	must.StrNotContains(t, err.Error(), "%!w")
}
