package download

import (
	"context"
	"fmt"
	"io"
	"time"
)

// watchdog ends a request during which nothing arrives for too long. Time in
// which nobody waits for the server, because the disk is slow, does not count.
type watchdog struct {
	timer *time.Timer
	limit time.Duration
}

func newWatchdog(limit time.Duration, cancel context.CancelCauseFunc) watchdog {
	bark := func() { cancel(temporary{fmt.Errorf("the server sent nothing for %s", limit)}) }
	return watchdog{time.AfterFunc(limit, bark), limit}
}

func (w watchdog) wake() { w.timer.Reset(w.limit) }

func (w watchdog) rest() { w.timer.Stop() }

// body is that of an answer. Its errors are explained, and io.EOF comes only
// after as many bytes as were announced.
type body struct {
	io.ReadCloser
	ctx    context.Context // of the request
	cancel context.CancelCauseFunc
	watch  watchdog
}

func (b *body) Read(p []byte) (int, error) {
	b.watch.wake()
	n, err := b.ReadCloser.Read(p)
	b.watch.rest()
	if err != nil && err != io.EOF {
		err = explain(b.ctx, err)
	}
	return n, err
}

func (b *body) Close() error {
	defer b.cancel(nil)
	return b.ReadCloser.Close()
}
