package thread

import (
	"errors"
	"os"
	"testing"

	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"
)

func TestRun(t *testing.T) {
	if os.Getuid() != 0 {
		t.Fatal("run it as root: `make unit-test`")
	}
	own, err := os.Readlink("/proc/thread-self/ns/uts")
	must.NoError(t, err)
	failure := errors.New("failure")
	for range 100 {
		other := ""
		err := Run(func() error {
			if unix.Getpid() == unix.Gettid() {
				return errors.New("work runs on the main thread")
			}
			if err := unix.Unshare(unix.CLONE_NEWUTS); err != nil {
				return err
			}
			var err error
			other, err = os.Readlink("/proc/thread-self/ns/uts")
			return errors.Join(failure, err)
		})
		must.EqError(t, err, failure.Error())
		must.NotEq(t, own, other)
		// No thread with the namespace is left to run anything else.
		now, err := os.Readlink("/proc/thread-self/ns/uts")
		must.NoError(t, err)
		must.Eq(t, own, now)
	}
}
