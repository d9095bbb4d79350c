package driver

import (
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"
)

func newFIFO(t *testing.T) (dir, path string) {
	dir = t.TempDir()
	path = filepath.Join(dir, "fifo")
	must.NoError(t, unix.Mkfifo(path, 0o600))
	return dir, path
}

func TestOpenStream(t *testing.T) {
	dir, path := newFIFO(t)
	read := make(chan string, 1)
	go func() { // like Nomad's log collector, which opens it and reads to the end
		reader, err := os.OpenFile(path, os.O_RDONLY, 0)
		if err == nil {
			text, _ := io.ReadAll(reader)
			read <- string(text)
		}
		close(read)
	}()
	stream, err := openStream(dir, path, "start")
	must.NoError(t, err)
	_, err = stream.WriteString("x")
	must.NoError(t, err)
	must.NoError(t, stream.Close())
	must.Eq(t, "x", <-read)
}

func TestOpenStreamWithoutReader(t *testing.T) {
	dir, path := newFIFO(t)
	_, err := openStream(dir, path, "start")
	must.ErrorContains(t, err, "no log collector of Nomad reads it")
}

// In TestOpenStreamAgain a plugin dies that has opened the FIFO for a start, so that the
// collector stops, and another plugin repeats this start. The next start has a collector
// again.
func TestOpenStreamAgain(t *testing.T) {
	dir, path := newFIFO(t)
	reader, err := os.OpenFile(path, os.O_RDWR, 0)
	must.NoError(t, err)
	defer reader.Close()
	for _, start := range []string{"first", "second"} {
		stream, err := openStream(dir, path, start)
		must.NoError(t, err)
		must.NoError(t, stream.Close())
		_, err = openStream(dir, path, start)
		must.ErrorIs(t, err, errNoReader)
	}
}

// TestOpenStreamFollowsNoLink checks that a task cannot make the driver open another file
// instead of the FIFO.
func TestOpenStreamFollowsNoLink(t *testing.T) {
	dir, path := newFIFO(t)
	inner := filepath.Join(dir, "logs")
	must.NoError(t, os.Mkdir(inner, 0o700))
	must.NoError(t, os.Symlink(path, filepath.Join(inner, "link")))
	must.NoError(t, os.Symlink(dir, filepath.Join(inner, "dir")))
	must.NoError(t, os.WriteFile(filepath.Join(inner, "file"), nil, 0o600))
	for _, name := range []string{"link", "dir/fifo", "file", "../../fifo"} {
		_, err := openStream(dir, filepath.Join(inner, name), "start")
		must.Error(t, err, must.Sprint(name))
	}
}
