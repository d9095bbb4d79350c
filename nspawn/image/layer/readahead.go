package layer

import (
	"io"
	"io/fs"
)

// There are a few large buffers. They need fewer hand-overs than a pipe, and keep both
// sides busy while one of them processes a large file or a slow block.
const (
	aheadBuffers = 4
	aheadSize    = 256 << 10
)

// readAhead reads a source ahead of its reader, in a goroutine. Empty buffers are passed
// to the goroutine, and full ones are passed back.
type readAhead struct {
	source io.Closer
	empty  chan []byte
	full   chan block

	now  block  // the block that is being read
	rest []byte // unread part of now
}

// block is a buffer with data, and the error that followed.
type block struct {
	data []byte
	err  error
}

func newReadAhead(source io.ReadCloser) *readAhead {
	a := &readAhead{
		source: source,
		empty:  make(chan []byte, aheadBuffers),
		full:   make(chan block, aheadBuffers),
	}
	for range aheadBuffers {
		a.empty <- make([]byte, aheadSize)
	}
	go a.run(source)
	return a
}

// run never blocks on sending, because the channels have room for all buffers.
func (a *readAhead) run(source io.Reader) {
	defer close(a.full)
	for buf := range a.empty {
		b := fill(source, buf)
		a.full <- b
		if b.err != nil {
			return
		}
	}
}

// fill works like io.ReadFull, but it passes errors on unchanged: io.EOF differs from the
// io.ErrUnexpectedEOF of a truncated compressed stream.
func fill(source io.Reader, buf []byte) block {
	var n int
	var err error
	for n < len(buf) && err == nil {
		var more int
		more, err = source.Read(buf[n:])
		n += more
	}
	return block{buf[:n], err}
}

func (a *readAhead) Read(p []byte) (int, error) {
	for len(a.rest) == 0 && len(p) > 0 {
		if a.now.err != nil {
			return 0, a.now.err
		}
		if a.now.data != nil {
			a.empty <- a.now.data[:aheadSize]
		}
		a.now = <-a.full
		a.rest = a.now.data
	}
	n := copy(p, a.rest)
	a.rest = a.rest[n:]
	return n, nil
}

// Close ends the goroutine and waits for it.
func (a *readAhead) Close() error {
	if a.now.err == fs.ErrClosed {
		return fs.ErrClosed
	}
	a.now, a.rest = block{err: fs.ErrClosed}, nil
	close(a.empty)
	for range a.empty { // so that run receives none
	}
	for range a.full { // until run has ended
	}
	return a.source.Close()
}
