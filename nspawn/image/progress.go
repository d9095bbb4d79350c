package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"nomad-driver-nspawn/nspawn/image/oci"
)

// progress adds up what the layers of an image read.
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

// reader tells of what is read.
func (p *progress) reader(r io.Reader, alive func()) io.Reader {
	return readerFunc(func(buf []byte) (int, error) {
		n, err := r.Read(buf)
		alive()
		p.add(n)
		return n, err
	})
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(buf []byte) (int, error) { return f(buf) }

// watchdog ends the context when alive was not called for a time, if that is not
// zero.
func watchdog(ctx context.Context, limit time.Duration) (_ context.Context, alive, cancel func()) {
	ctx, cancelCause := context.WithCancelCause(ctx)
	if limit == 0 {
		return ctx, func() {}, func() { cancelCause(nil) }
	}
	timer := time.AfterFunc(limit, func() { cancelCause(fmt.Errorf("%w for %s", errInactive, limit)) })
	return ctx, func() { timer.Reset(limit) }, func() {
		timer.Stop()
		cancelCause(nil)
	}
}

// cause adds to an error that the watchdog has ended ctx.
func cause(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	if why := context.Cause(ctx); errors.Is(why, errInactive) {
		return errors.Join(err, why)
	}
	return err
}
