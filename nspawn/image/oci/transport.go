package oci

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"path"
	"slices"
	"strconv"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/remote"

	"nomad-driver-nspawn/nspawn/image/fetch"
)

const (
	maxTries      = 3
	firstPause    = 100 * time.Millisecond // then three times as long each
	maxRetryAfter = 30 * time.Second       // what a registry can make us wait
)

// retryTransport is how every request to registries and token servers goes out. It
// chooses TLS or not, retries, bounds documents, and marks errors of the
// network as temporary.
type retryTransport struct {
	base  http.RoundTripper
	plain []string // hosts without TLS
}

// newRetryTransport returns one that trusts the certificates in caFile, if not empty,
// besides the system's.
func newRetryTransport(caFile string, plain []string) (*retryTransport, error) {
	base := remote.DefaultTransport.(*http.Transport).Clone()
	base.DisableCompression = true // blobs are wanted as they are stored
	base.IdleConnTimeout = 30 * time.Second
	var err error
	if base.TLSClientConfig, err = fetch.TLS(caFile); err != nil {
		return nil, err
	}
	return &retryTransport{base, plain}, nil
}

func (w *retryTransport) RoundTrip(req *http.Request) (*http.Response, error) {
	req, err := w.withScheme(req)
	if err != nil {
		return nil, err
	}
	for try := 1; ; try++ {
		resp, err := w.once(req)
		if try == maxTries || req.Method != http.MethodGet || !again(resp, err) {
			return resp, err
		}
		pause := pauseAfter(resp, try)
		if deadline, ok := req.Context().Deadline(); ok && time.Until(deadline) < pause || pause > maxRetryAfter {
			return resp, err
		}
		if resp != nil {
			resp.Body.Close()
		}
		if err := sleep(req.Context(), pause); err != nil {
			return nil, err
		}
	}
}

// withScheme returns the request with http if its host is one without TLS, or
// refuses it if it has http and its host is not. The library tries http by
// itself with private addresses.
func (w *retryTransport) withScheme(req *http.Request) (*http.Request, error) {
	plain := slices.Contains(w.plain, req.URL.Host)
	if plain == (req.URL.Scheme == "http") {
		return req, nil
	}
	if !plain {
		return nil, fmt.Errorf("refuse plain HTTP with %s; the plugin must list it as a registry without TLS", req.URL.Host)
	}
	req = req.Clone(req.Context())
	req.URL.Scheme = "http"
	return req, nil
}

func (w *retryTransport) once(req *http.Request) (*http.Response, error) {
	resp, err := w.base.RoundTrip(req)
	if err != nil {
		return nil, networkError(err)
	}
	body := &wireBody{ReadCloser: resp.Body, left: -1}
	if !isBlob(req) {
		body.left = maxDocument
	}
	resp.Body = body
	return resp, nil
}

// networkError marks an error of the transport as temporary, unless it is
// about certificates or the caller has given up.
func networkError(err error) error {
	if fetch.Untrusted(err) || errors.Is(err, context.Canceled) {
		return err
	}
	return fetch.Temporary(err)
}

func again(resp *http.Response, err error) bool {
	if err != nil {
		return errors.Is(err, ErrTemporary) && !errors.Is(err, context.DeadlineExceeded)
	}
	return busy(resp.StatusCode)
}

// pauseAfter returns how long to wait after a failed try: as long as the
// registry says (RFC 9110, section 10.2.3), or else a moment.
func pauseAfter(resp *http.Response, try int) time.Duration {
	pause := firstPause
	for range try - 1 {
		pause *= 3
	}
	if resp == nil {
		return pause
	}
	after := resp.Header.Get("Retry-After")
	if seconds, err := strconv.ParseUint(after, 10, 31); err == nil {
		return time.Duration(seconds) * time.Second
	}
	if date, err := http.ParseTime(after); err == nil {
		return max(0, time.Until(date))
	}
	return pause
}

// sleep waits: a registry tells nobody when it is well again.
func sleep(ctx context.Context, pause time.Duration) error {
	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// isBlob tells whether a request is for a blob, /v2/REPOSITORY/blobs/DIGEST, or
// comes from one by redirection. All else is answered by a document.
func isBlob(req *http.Request) bool {
	for req.Response != nil && req.Response.Request != nil {
		req = req.Response.Request
	}
	return path.Base(path.Dir(req.URL.Path)) == "blobs"
}

// wireBody bounds what is read of a response and marks errors.
type wireBody struct {
	io.ReadCloser
	left int64 // bytes still allowed, negative if there is no bound
}

func (b *wireBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if b.left >= 0 {
		if b.left -= int64(n); b.left < 0 {
			b.left = 0
			return 0, fmt.Errorf("answer is %w", errTooLarge)
		}
	}
	if err != nil && err != io.EOF {
		err = networkError(err)
	}
	return n, err
}
