package layer

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/shoenig/test/must"
)

func manyFiles(n int) []entry {
	all := make([]entry, n)
	for i := range all {
		all[i] = file(fmt.Sprintf("%d/%d", i/1000, i), "")
	}
	return all
}

// image returns entries like those of an image: size bytes in files of 1 B to 1 MB, most
// of them small, of text that compresses about as well as programs.
func image(size int) []entry {
	random := rand.New(rand.NewPCG(1, 2))
	words := make([]byte, 1<<20)
	for i := range words {
		words[i] = byte(random.ExpFloat64() * 12)
	}
	all := []entry{}
	for i := 0; size > 0; i++ {
		if i%50 == 0 {
			all = append(all, dir(fmt.Sprintf("dir%d", i/50)))
		}
		n := min(size, 1<<random.IntN(21))
		start := random.IntN(len(words) - n + 1)
		all = append(all, file(fmt.Sprintf("dir%d/file%d", i/50, i), string(words[start:start+n])))
		size -= n
	}
	return all
}

func BenchmarkUnpack(b *testing.B) {
	const size = 64 << 20
	data := archive(b, image(size)...)
	for _, name := range []string{"plain", "gzip", "zstd"} {
		packed := compress(b, tools[name], data)
		b.Run(name, func(b *testing.B) {
			b.SetBytes(size)
			b.ReportAllocs()
			top := b.TempDir()
			for i := 0; b.Loop(); i++ {
				dir := filepath.Join(top, fmt.Sprint(i))
				must.NoError(b, os.Mkdir(dir, 0o755))
				in, err := Decompress(bytes.NewReader(packed), LargeWindow)
				must.NoError(b, err)
				_, err = Unpack(b.Context(), in, dir, Options{Whiteouts: true})
				must.NoError(b, err)
				must.NoError(b, in.Close())
				b.StopTimer()
				must.NoError(b, os.RemoveAll(dir))
				b.StartTimer()
			}
		})
	}
}

// BenchmarkMillionEntries unpacks as many files as are allowed, and one more.
func BenchmarkMillionEntries(b *testing.B) {
	const limit = 1_000_000
	for b.Loop() {
		r, w := io.Pipe()
		go func() {
			out := tar.NewWriter(w)
			for i := range limit + 1 {
				if out.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: fmt.Sprint(i), Mode: 0o644}) != nil {
					return // the reader has stopped
				}
			}
		}()
		_, err := Unpack(b.Context(), r, b.TempDir(), Options{MaxEntries: limit})
		must.ErrorContains(b, err, fmt.Sprintf("entry %q: more than %d entries", fmt.Sprint(limit), limit))
		must.NoError(b, r.Close())
	}
}
