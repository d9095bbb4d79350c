package idmap

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"

	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"

	"nomad-driver-nspawn/e2e/host/hosttest"
	"nomad-driver-nspawn/nspawn/mounts"
)

// TestUserNamespaces makes many namespaces at the same time, each with its own map, and
// expects that no child of ours remains, not even of the namespaces that could not be
// made.
func TestUserNamespaces(t *testing.T) {
	hosttest.RequireRoot(t)
	t.Run("at once", func(t *testing.T) {
		for n := range uint32(4) {
			t.Run(fmt.Sprint("portable ", n), func(t *testing.T) {
				t.Parallel()
				base := (n + 8) * RangeSize
				holder, err := stoppedHolder()
				must.NoError(t, err)
				defer holder.release()
				namespace, err := holder.namespace(base, 0)
				must.NoError(t, err)
				defer namespace.Close()
				must.NoError(t, mappedTo(namespace, t.TempDir(), base))
			})
		}
		for n := range uint32(32) {
			t.Run(fmt.Sprint(n), func(t *testing.T) {
				t.Parallel()
				base := (n + 16) * RangeSize
				namespace, err := Namespace(base)
				must.NoError(t, err)
				defer namespace.Close()
				must.NoError(t, mappedTo(namespace, t.TempDir(), base))
				_, err = Namespace(^uint32(0)) // there are no such UIDs
				must.ErrorIs(t, err, unix.EINVAL)
			})
		}
	})
	children, err := filepath.Glob("/proc/self/task/*/children")
	must.NoError(t, err)
	must.SliceNotEmpty(t, children)
	for _, list := range children {
		pids, err := os.ReadFile(list)
		if !os.IsNotExist(err) { // the thread has ended
			must.NoError(t, err)
		}
		must.Eq(t, "", string(pids))
	}
}

// A program can be executed as soon as it is written, also while namespaces are made: their
// processes have no descriptor of it, which is one to write with.
func TestNamespaceKeepsNothingOpen(t *testing.T) {
	hosttest.RequireRoot(t)
	program, err := os.ReadFile("/bin/true")
	must.NoError(t, err)
	dir, stop := t.TempDir(), make(chan struct{})
	var makers sync.WaitGroup
	defer makers.Wait()
	defer close(stop)
	for range 4 {
		makers.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if namespace, err := Namespace(8 * RangeSize); err == nil {
					namespace.Close()
				}
			}
		})
	}
	for n := range 300 {
		path := filepath.Join(dir, fmt.Sprint(n))
		syscall.ForkLock.RLock() // package os starts no process meanwhile
		err := os.WriteFile(path, program, 0o700)
		syscall.ForkLock.RUnlock()
		must.NoError(t, err)
		must.NoError(t, exec.Command(path).Run(), must.Sprint("program ", n))
	}
}

// mappedTo checks that the namespace maps dir to base.
func mappedTo(namespace *os.File, dir string, base uint32) error {
	tree, err := mounts.Clone(dir, 0)
	if err != nil {
		return err
	}
	defer unix.Close(tree)
	if err := Map(tree, dir, namespace); err != nil {
		return err
	}
	var stat unix.Stat_t
	if err := unix.Fstatat(tree, "", &stat, unix.AT_EMPTY_PATH); err != nil {
		return err
	}
	if stat.Uid != base {
		return fmt.Errorf("owner is %d, not %d", stat.Uid, base)
	}
	return nil
}
