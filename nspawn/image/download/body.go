package download

import (
	"context"
	"io"

	"nomad-driver-nspawn/nspawn/image/fetch"
)

// body is the body of a response. It explains errors, and returns io.EOF only after the
// announced number of bytes.
type body struct {
	io.ReadCloser
	ctx   context.Context // context of the request
	watch *fetch.Watchdog
}

func (b *body) Read(p []byte) (int, error) {
	b.watch.Wait()
	n, err := b.ReadCloser.Read(p)
	b.watch.Got(n, false)
	if err != nil && err != io.EOF {
		err = explain(b.ctx, err)
	}
	return n, err
}

func (b *body) Close() error {
	defer b.watch.Stop()
	return b.ReadCloser.Close()
}
