package fetch

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

// send writes pieces until the reader or the test stops it.
func send(ctx context.Context, w *io.PipeWriter, piece int, pause time.Duration, pieces int) {
	defer w.Close()
	for range pieces {
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			w.CloseWithError(context.Cause(ctx)) // net/http does the same
			return
		}
		if _, err := w.Write(make([]byte, piece)); err != nil {
			return
		}
	}
}

func TestWatchdog(t *testing.T) {
	for name, c := range map[string]struct {
		piece  int
		pause  time.Duration
		pieces int
		want   time.Duration // time until it is cut off; 0: it is not
	}{
		"nothing":                      {0, time.Hour, 1, limit},
		"one byte in time, and again":  {1, limit - 1, 100, limit},
		"a byte each 2 s":              {1, 2 * time.Second, 2000, limit},
		"half of enough, then nothing": {Enough / 2, time.Hour, 1, limit},
		"enough, then nothing":         {Enough, limit / 2, 1, 0},
		"enough each time":             {Enough, limit - 1, 5, 0},
		"just enough of small pieces":  {Enough / 50, time.Second, 500, 0},
		"too little of small pieces":   {Enough / 100, time.Second, 500, limit},
		"a small file":                 {10, limit / 10, 5, 0},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, watch := Watch(t.Context(), limit)
				defer watch.Stop()
				r, w := io.Pipe()
				go send(ctx, w, c.piece, c.pause, c.pieces)
				began := time.Now()
				got, err := io.ReadAll(watch.Reader(r))
				if c.want == 0 {
					must.NoError(t, err)
					must.Eq(t, c.piece*c.pieces, len(got))
					return
				}
				must.ErrorIs(t, err, ErrTemporary)
				must.EqError(t, err, "the server has sent nothing for 1m0s, or less than 64 kB in that time")
				must.EqOp(t, c.want, time.Since(began))
			})
		})
	}
}

// TestWatchdogOfSlowReader uses a disk that is slower than the network.
func TestWatchdogOfSlowReader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, watch := Watch(t.Context(), limit)
		defer watch.Stop()
		r := watch.Reader(iotest.OneByteReader(strings.NewReader("abc")))
		for _, want := range []string{"a", "b", "c"} {
			time.Sleep(10 * limit)
			got := make([]byte, 1)
			_, err := r.Read(got)
			must.NoError(t, err)
			must.EqOp(t, want, string(got))
		}
		time.Sleep(10 * limit)
		_, err := r.Read(make([]byte, 1))
		must.EqOp(t, io.EOF, err)
		must.NoError(t, ctx.Err(), must.Sprint("the request was ended"))
	})
}

func TestWatchdogWithoutLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, watch := Watch(t.Context(), 0)
		watch.Wait()
		time.Sleep(1000 * time.Hour)
		watch.Got(1, false)
		must.NoError(t, ctx.Err())
		watch.Stop()
		must.Error(t, ctx.Err())
	})
}
