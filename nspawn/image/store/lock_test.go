package store

import (
	"io/fs"
	"os"
	"testing"

	"github.com/shoenig/test/must"
)

// TestLockedWhatWasReplaced waits for the lock of a directory that its owner removes and
// another process creates again.
func TestLockedWhatWasReplaced(t *testing.T) {
	path := t.TempDir() + "/dir"
	must.NoError(t, os.Mkdir(path, 0o700))
	dir, err := os.Open(path)
	must.NoError(t, err)
	defer dir.Close()
	must.NoError(t, checkIsAt(dir, path))
	must.NoError(t, os.Rename(path, path+"-old"))
	must.ErrorIs(t, checkIsAt(dir, path), fs.ErrNotExist)
	must.NoError(t, os.Mkdir(path, 0o700))
	must.ErrorIs(t, checkIsAt(dir, path), fs.ErrNotExist)
}
