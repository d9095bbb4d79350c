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
	firstPause    = 100 * time.Millisecond // pause after the first try; each further pause is three times as long
	maxRetryAfter = 30 * time.Second       // longest wait that a registry can request
)

// retryTransport sends all requests to registries and token servers. It decides about
// TLS, retries requests, limits the size of documents, and marks network errors as
// temporary.
type retryTransport struct {
	base  http.RoundTripper
	plain []string // hosts without TLS
}

// newRetryTransport returns a transport that trusts the certificates in caFile, if it is
// not empty, in addition to the system's.
func newRetryTransport(caFile string, plain []string) (*retryTransport, error) {
	base := remote.DefaultTransport.(*http.Transport).Clone()
	base.DisableCompression = true // blobs are needed as they are stored
	base.IdleConnTimeout = 30 * time.Second
	var err error
	if base.TLSClientConfig, err = fetch.TLS(caFile); err != nil {
		return nil, err
	}
	return &retryTransport{base, plain}, nil
}

func (t *retryTransport) RoundTrip(req *http.Request) (*http.Response, error) {
	req, err := t.withScheme(req)
	if err != nil {
		return nil, err
	}
	for try := 1; ; try++ {
		resp, err := t.once(req)
		if try == maxTries || req.Method != http.MethodGet || !shouldRetry(resp, err) {
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

// withScheme changes the request to http if its host is listed as one without TLS, and
// refuses http for other hosts. The library itself tries http with private addresses.
func (t *retryTransport) withScheme(req *http.Request) (*http.Request, error) {
	plain := slices.Contains(t.plain, req.URL.Host)
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

func (t *retryTransport) once(req *http.Request) (*http.Response, error) {
	resp, err := t.base.RoundTrip(req)
	if err != nil {
		return nil, networkError(err)
	}
	body := &limitedBody{ReadCloser: resp.Body, left: -1}
	if !isBlob(req) {
		body.left = maxDocument
	}
	resp.Body = body
	return resp, nil
}

// networkError marks an error of the transport as temporary, unless it is about
// certificates or the caller has canceled the request.
func networkError(err error) error {
	if fetch.Untrusted(err) || errors.Is(err, context.Canceled) {
		return err
	}
	return fetch.Temporary(err)
}

func shouldRetry(resp *http.Response, err error) bool {
	if err != nil {
		return errors.Is(err, ErrTemporary) && !errors.Is(err, context.DeadlineExceeded)
	}
	return busy(resp.StatusCode)
}

// pauseAfter returns how long to wait after a failed try: for as long as the registry
// requests (RFC 9110, section 10.2.3), or otherwise a short time.
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

// sleep waits. Registries send no event when they have recovered.
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

// isBlob reports whether a request is for a blob, /v2/REPOSITORY/blobs/DIGEST, or was
// redirected from one. All other responses are documents.
func isBlob(req *http.Request) bool {
	for req.Response != nil && req.Response.Request != nil {
		req = req.Response.Request
	}
	return path.Base(path.Dir(req.URL.Path)) == "blobs"
}

// limitedBody limits how much of a response is read, and marks errors.
type limitedBody struct {
	io.ReadCloser
	left int64 // number of bytes still allowed; negative without a limit
}

func (b *limitedBody) Read(p []byte) (int, error) {
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
