package download

import (
	"context"
	"io"

	"nomad-driver-nspawn/nspawn/image/fetch"
)

// body is the body of an answer. Its errors are explained, and io.EOF comes only
// after as many bytes as were announced.
type body struct {
	io.ReadCloser
	ctx   context.Context // of the request
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
