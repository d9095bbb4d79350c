package programs

import (
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"
)

// TestInstallAtTheSameTime checks that machines that start at the same time on a freshly
// booted host each find the program that stays. systemd-nspawn cannot bind a file that has
// lost its name.
func TestInstallAtTheSameTime(t *testing.T) {
	for range 50 {
		dir := t.TempDir()
		path := filepath.Join(dir, "launch")
		const callers = 8
		files, errs := make([]*os.File, callers), make([]error, callers)
		var calls sync.WaitGroup
		for i := range callers {
			calls.Go(func() {
				if errs[i] = install(path, []byte("program")); errs[i] == nil {
					files[i], errs[i] = os.Open(path)
				}
			})
		}
		calls.Wait()
		for i, file := range files {
			must.NoError(t, errs[i])
			var stat unix.Stat_t
			must.NoError(t, unix.Fstat(int(file.Fd()), &stat))
			must.EqOp(t, 1, stat.Nlink, must.Sprint("caller ", i))
			must.EqOp(t, unix.S_IFREG|0o755, stat.Mode)
			must.NoError(t, file.Close())
		}
		names, err := os.ReadDir(dir)
		must.NoError(t, err)
		must.SliceLen(t, 1, names)
	}
}
