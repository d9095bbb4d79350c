// Package fetch has what registries and web servers have in common: which
// certificates are trusted, which errors may be gone at the next try, and how slow a
// server may be.
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

// ErrTemporary is matched by errors after which another try may succeed.
var ErrTemporary = errors.New("temporary")

// Temporary returns err so that it matches ErrTemporary.
func Temporary(err error) error { return temporary{err} }

type temporary struct{ error }

func (t temporary) Unwrap() error { return t.error }

func (temporary) Is(target error) bool { return target == ErrTemporary }

// Untrusted reports whether err says that no TLS connection can be made, however often
// it is tried.
func Untrusted(err error) bool {
	var certificate *tls.CertificateVerificationError
	var noTLS tls.RecordHeaderError // http.ErrSchemeMismatch above the client
	return errors.As(err, &certificate) || errors.As(err, &noTLS) || errors.Is(err, http.ErrSchemeMismatch)
}

// TLS returns the configuration of a client that trusts the PEM certificates in caFile
// besides the system's. It is nil without a file.
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

// Enough is what a server has to send within the time limit of a Watchdog, in bytes,
// unless it has less. A server that sends a byte now and then would keep a pull for as
// long as it likes.
const Enough = 64 << 10

// Watchdog ends a context when a server sends too little. Only the time counts in which
// somebody waits for the server: a slow disk is not the server's fault.
//
// It is used by one goroutine.
type Watchdog struct {
	cancel  context.CancelCauseFunc
	timer   *time.Timer
	limit   time.Duration
	waiting time.Time     // since when; zero if nobody waits
	left    time.Duration // to wait for Enough bytes
	got     int           // of them
}

// Watch returns a context that ends when the server has sent less than Enough bytes
// while it was waited for as long as limit, or never for that reason if limit is 0.
// The cause matches ErrTemporary. The watchdog must be stopped.
func Watch(ctx context.Context, limit time.Duration) (context.Context, *Watchdog) {
	ctx, cancel := context.WithCancelCause(ctx)
	w := &Watchdog{cancel: cancel, limit: limit, left: limit}
	if limit > 0 {
		w.timer = time.AfterFunc(limit, w.bark)
		w.timer.Stop()
	}
	return ctx, w
}

func (w *Watchdog) bark() {
	w.cancel(Temporary(fmt.Errorf("the server has sent nothing for %s, or less than %d kB in that time", w.limit, Enough>>10)))
}

// Wait says that the server is waited for from now on.
func (w *Watchdog) Wait() {
	if w.timer != nil {
		w.waiting = time.Now()
		w.timer.Reset(w.left)
	}
}

// Got says that n bytes have come, or all that was asked for, and that nobody waits.
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

// Stop ends the context.
func (w *Watchdog) Stop() {
	if w.timer != nil {
		w.timer.Stop()
	}
	w.cancel(nil)
}

// Reader returns a reader that waits for the server when it reads from r.
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
