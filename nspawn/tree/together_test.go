package tree

import (
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/shoenig/test/must"
)

// TestRemoveTogether has several remove one tree at the same time, as two plugins do with
// what a third one has left. Afterwards it is gone.
func TestRemoveTogether(t *testing.T) {
	for n := range 10 {
		dir := filepath.Join(t.TempDir(), "tree")
		for i := range 30 {
			must.NoError(t, os.MkdirAll(filepath.Join(dir, fmt.Sprint(i), "a/b"), 0o700))
		}
		var removals sync.WaitGroup
		for range 3 {
			removals.Go(func() {
				if err := Remove(dir); err != nil {
					t.Error(err)
				}
			})
		}
		removals.Wait()
		_, err := os.Lstat(dir)
		must.ErrorIs(t, err, os.ErrNotExist, must.Sprint("tree ", n))
	}
}

// TestRemoveWhileWritten removes trees in which somebody goes on writing for a while.
func TestRemoveWhileWritten(t *testing.T) {
	for range 100 {
		dir := filepath.Join(t.TempDir(), "tree")
		var writers sync.WaitGroup
		for _, path := range []string{dir, filepath.Join(dir, "below")} {
			must.NoError(t, os.MkdirAll(path, 0o700))
			for writer := range 2 {
				writers.Go(func() {
					for n := range 200 {
						_ = os.WriteFile(filepath.Join(path, fmt.Sprint(writer, "-", n)), nil, 0o600) // until it is gone
					}
				})
			}
		}
		err := Remove(dir)
		writers.Wait()
		must.NoError(t, err)
	}
}
