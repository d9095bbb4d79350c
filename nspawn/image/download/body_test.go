package download

import (
	"context"
	"io"
	"strings"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"github.com/shoenig/test/must"
)

const limit = time.Minute

// newBody returns a body that reads from r, as a request returns it.
func newBody(t *testing.T, r io.Reader) *body {
	ctx, cancel := context.WithCancelCause(t.Context())
	watch := newWatchdog(limit, cancel)
	watch.rest()
	b := &body{io.NopCloser(r), ctx, cancel, watch}
	t.Cleanup(func() { must.NoError(t, b.Close()) })
	return b
}

func TestBodyStalls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, w := io.Pipe()
		b := newBody(t, r)
		context.AfterFunc(b.ctx, func() { w.CloseWithError(b.ctx.Err()) }) // as net/http does
		began := time.Now()
		_, err := b.Read(make([]byte, 1))
		must.ErrorIs(t, err, ErrTemporary)
		must.EqError(t, err, "the server sent nothing for 1m0s")
		must.EqOp(t, limit, time.Since(began))
	})
}

// TestBodyOfSlowReader is about a disk slower than the network.
func TestBodyOfSlowReader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBody(t, iotest.OneByteReader(strings.NewReader("abc")))
		for _, want := range []string{"a", "b", "c"} {
			time.Sleep(10 * limit)
			got := make([]byte, 1)
			_, err := b.Read(got)
			must.NoError(t, err)
			must.EqOp(t, want, string(got))
		}
		time.Sleep(10 * limit)
		_, err := b.Read(make([]byte, 1))
		must.EqOp(t, io.EOF, err)
		must.NoError(t, b.ctx.Err(), must.Sprint("the request was ended"))
	})
}

// TestBodySlowly is about a server that is slow but steady.
func TestBodySlowly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, w := io.Pipe()
		b := newBody(t, r)
		context.AfterFunc(b.ctx, func() { w.CloseWithError(b.ctx.Err()) })
		go func() {
			for range 5 {
				time.Sleep(limit - 1)
				_, _ = w.Write([]byte("a"))
			}
			w.Close()
		}()
		got, err := io.ReadAll(b)
		must.NoError(t, err)
		must.EqOp(t, "aaaaa", string(got))
	})
}
