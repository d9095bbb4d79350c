package programs

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"

	"github.com/shoenig/test/must"
)

// A program can be executed as soon as it is there, also while others start processes: each
// of them has all descriptors of ours for a moment, and the kernel executes nothing that
// somebody may write to (ETXTBSY).
func TestInstallIsNotBusy(t *testing.T) {
	program, err := os.ReadFile("/bin/true")
	must.NoError(t, err)
	dir, stop := t.TempDir(), make(chan struct{})
	var starters sync.WaitGroup
	defer starters.Wait()
	defer close(stop)
	for range 4 {
		starters.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					_ = exec.Command("/bin/true").Run()
				}
			}
		})
	}
	for n := range 300 {
		path := filepath.Join(dir, fmt.Sprint(n))
		must.NoError(t, install(path, program))
		must.NoError(t, exec.Command(path).Run(), must.Sprint("program ", n))
	}
}
