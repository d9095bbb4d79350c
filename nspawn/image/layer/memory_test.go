package layer

import (
	"bytes"
	"io"
	"os/exec"
	"runtime"
	"testing"

	"github.com/shoenig/test/must"
)

// TestMemoryOfTheWindow decompresses streams that fill their window. All that
// is allocated meanwhile, whether it is freed or not, is the window and some megabytes.
func TestMemoryOfTheWindow(t *testing.T) {
	for name, command := range map[string][]string{
		"zstd":  {"zstd", "-qc", "-1", "--long=24"},
		"xz":    {"xz", "-0c", "--lzma2=preset=0,dict=16MiB"},
		"gzip":  {"gzip", "-1c"},
		"bzip2": {"bzip2", "-9c"},
	} {
		t.Run(name, func(t *testing.T) {
			tool := exec.Command(command[0], command[1:]...)
			tool.Stdin = io.LimitReader(zeros{}, Window+1<<20)
			packed, err := tool.Output()
			must.NoError(t, err)
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			in, err := Decompress(bytes.NewReader(packed), Window)
			must.NoError(t, err)
			n, err := io.Copy(io.Discard, in)
			must.NoError(t, err)
			must.NoError(t, in.Close())
			runtime.ReadMemStats(&after)
			must.EqOp(t, Window+1<<20, n)
			must.Less(t, uint64(Window+6<<20), after.TotalAlloc-before.TotalAlloc)
		})
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }
