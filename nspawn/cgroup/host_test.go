package cgroup

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"

	"nomad-driver-nspawn/e2e/host/hosttest"
)

// TestHostRemoveGroup removes a chain of groups whose path is too long for any system
// call.
func TestHostRemoveGroup(t *testing.T) {
	hosttest.Require(t)
	top := filepath.Join(Root, fmt.Sprintf("chain-%d", os.Getpid()))
	must.NoError(t, os.Mkdir(top, 0o755))
	at, err := unix.Open(top, unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	must.NoError(t, err)
	for n := range 100 {
		must.NoError(t, unix.Mkdirat(at, strings.Repeat("x", 200), 0o755))
		must.NoError(t, unix.Mkdirat(at, strconv.Itoa(n), 0o755))
		next, err := unix.Openat(at, strings.Repeat("x", 200), unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		must.NoError(t, err)
		unix.Close(at)
		at = next
	}
	unix.Close(at)
	must.ErrorIs(t, os.Remove(top), unix.EBUSY) // what a plain removal returns
	must.NoError(t, Remove(top))
	_, err = os.Stat(top)
	must.ErrorIs(t, err, os.ErrNotExist)
	must.NoError(t, Remove(top))
}
