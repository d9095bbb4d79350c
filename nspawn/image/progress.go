package image

import (
	"io"
	"sync"

	"nomad-driver-nspawn/nspawn/image/oci"
)

// progress sums up what has been read of the layers of an image.
type progress struct {
	report      func(done, total int64)
	mu          sync.Mutex
	done, total int64
}

func newProgress(report func(done, total int64), layers []oci.Layer) *progress {
	p := &progress{report: report}
	for _, l := range layers {
		p.total += l.Size
	}
	return p
}

func (p *progress) add(n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.done += int64(n)
	if p.report != nil {
		p.report(p.done, p.total)
	}
}

// reader returns a reader that reports everything that is read from r.
func (p *progress) reader(r io.Reader) io.Reader {
	return readerFunc(func(buf []byte) (int, error) {
		n, err := r.Read(buf)
		p.add(n)
		return n, err
	})
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(buf []byte) (int, error) { return f(buf) }
