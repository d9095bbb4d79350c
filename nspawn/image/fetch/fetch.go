// Package fetch contains what downloads from registries and web servers have in common:
// the trusted certificates, the distinction of temporary errors, and a limit for slow
// servers.
package fetch

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"time"
)

// ErrTemporary is matched by errors after which another attempt may succeed.
var ErrTemporary = errors.New("temporary")

// Temporary wraps err so that it matches ErrTemporary.
func Temporary(err error) error { return temporary{err} }

type temporary struct{ error }

func (t temporary) Unwrap() error { return t.error }

func (temporary) Is(target error) bool { return target == ErrTemporary }

// Untrusted reports whether err means that no attempt to make a TLS connection will
// succeed.
func Untrusted(err error) bool {
	var certificate *tls.CertificateVerificationError
	var noTLS tls.RecordHeaderError // an http.Client returns http.ErrSchemeMismatch instead
	return errors.As(err, &certificate) || errors.As(err, &noTLS) || errors.Is(err, http.ErrSchemeMismatch)
}

// TLS returns the configuration of a client that trusts the PEM certificates in caFile in
// addition to the system's. It returns nil if caFile is empty.
func TLS(caFile string) (*tls.Config, error) {
	if caFile == "" {
		return nil, nil
	}
	roots, err := x509.SystemCertPool()
	if err != nil {
		return nil, fmt.Errorf("load the system's certificates: %w", err)
	}
	pem, err := os.ReadFile(caFile)
	if err != nil {
		return nil, fmt.Errorf("read CA file: %w", err)
	}
	if !roots.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("read CA file: no certificate in %s", caFile)
	}
	return &tls.Config{RootCAs: roots}, nil
}

// Enough is the number of bytes that a server must send within the time limit of a
// Watchdog, unless fewer are left. Without it, a server could delay a pull as long as it
// likes by sending a byte now and then.
const Enough = 64 << 10

// Watchdog cancels a context when a server sends too little. It counts only the time in
// which the caller waits for the server, because a slow disk is not the server's fault.
//
// A Watchdog must be used by one goroutine only.
type Watchdog struct {
	cancel  context.CancelCauseFunc
	timer   *time.Timer
	limit   time.Duration
	waiting time.Time     // start of the current wait
	left    time.Duration // remaining time in which Enough bytes must arrive
	got     int           // number of bytes that have arrived
}

// Watch returns a context that ends if the server has sent fewer than Enough bytes while
// the caller has waited for limit in total. If limit is 0, it never ends for that reason.
// The cause of the end matches ErrTemporary. The caller must stop the watchdog.
func Watch(ctx context.Context, limit time.Duration) (context.Context, *Watchdog) {
	ctx, cancel := context.WithCancelCause(ctx)
	w := &Watchdog{cancel: cancel, limit: limit, left: limit}
	if limit > 0 {
		w.timer = time.AfterFunc(limit, w.expire)
		w.timer.Stop()
	}
	return ctx, w
}

func (w *Watchdog) expire() {
	w.cancel(Temporary(fmt.Errorf("the server has sent nothing for %s, or less than %d kB in that time", w.limit, Enough>>10)))
}

// Wait starts the clock: the caller waits for the server from now on.
func (w *Watchdog) Wait() {
	if w.timer != nil {
		w.waiting = time.Now()
		w.timer.Reset(w.left)
	}
}

// Got stops the clock. n bytes have arrived; all says that this was everything requested.
func (w *Watchdog) Got(n int, all bool) {
	if w.timer == nil {
		return
	}
	w.timer.Stop()
	w.left -= time.Since(w.waiting)
	if w.got += n; w.got >= Enough || all {
		w.got, w.left = 0, w.limit
	}
}

// Stop stops the watchdog and cancels its context.
func (w *Watchdog) Stop() {
	if w.timer != nil {
		w.timer.Stop()
	}
	w.cancel(nil)
}

// Reader returns a reader from r that runs the clock while it reads.
func (w *Watchdog) Reader(r io.Reader) io.Reader { return &watchedReader{r, w} }

type watchedReader struct {
	r io.Reader
	w *Watchdog
}

func (r *watchedReader) Read(p []byte) (int, error) {
	r.w.Wait()
	n, err := r.r.Read(p)
	r.w.Got(n, false)
	return n, err
}
