package enter

import (
	"os"
	"os/exec"
	"testing"

	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"
)

// TestUnpack runs a program from memory. Nobody can change it, through /proc/PID/exe or
// otherwise.
func TestUnpack(t *testing.T) {
	program, err := os.ReadFile("/bin/true")
	must.NoError(t, err)
	file, err := unpack(program)
	must.NoError(t, err)
	t.Cleanup(func() { file.Close() })
	cmd := exec.Command("/proc/self/fd/3")
	cmd.ExtraFiles = []*os.File{file}
	must.NoError(t, cmd.Run())

	_, err = file.WriteAt([]byte("x"), 0)
	must.ErrorIs(t, err, unix.EPERM)
	must.ErrorIs(t, file.Truncate(0), unix.EPERM)
	seals, err := unix.FcntlInt(file.Fd(), unix.F_GET_SEALS, 0)
	must.NoError(t, err)
	if seals&unix.F_SEAL_EXEC != 0 { // since Linux 6.3
		must.ErrorIs(t, file.Chmod(0o600), unix.EPERM)
	}
}
