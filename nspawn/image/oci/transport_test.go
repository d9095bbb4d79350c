package oci

import (
	"context"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shoenig/test/must"
)

// roundTrip is a registry in a function.
type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func response(status int, retryAfter string) *http.Response {
	return &http.Response{
		StatusCode: status,
		Header:     http.Header{"Retry-After": {retryAfter}},
		Body:       io.NopCloser(strings.NewReader("")),
	}
}

func TestRetries(t *testing.T) {
	for _, c := range []struct {
		retryAfter string
		method     string
		deadline   time.Duration // 0: none
		tries      int
		took       time.Duration
	}{
		{"", http.MethodGet, 0, 3, 400 * time.Millisecond},
		{"7", http.MethodGet, 0, 3, 14 * time.Second},
		{"0", http.MethodGet, 0, 3, 0},
		{"nonsense", http.MethodGet, 0, 3, 400 * time.Millisecond},
		{"30", http.MethodGet, 0, 3, time.Minute},
		{"31", http.MethodGet, 0, 1, 0},                                          // too long, so the caller decides
		{"9999999999999999999", http.MethodGet, 0, 3, 400 * time.Millisecond},    // not a number
		{"7", http.MethodGet, 10 * time.Second, 2, 7 * time.Second},              // no time for a third try
		{"7", http.MethodPost, 0, 1, 0},                                          // the request may have had an effect
		{"Sat, 01 Jan 2000 00:00:05 GMT", http.MethodGet, 0, 3, 5 * time.Second}, // the clock of synctest begins with the year 2000
		{"Fri, 31 Dec 1999 23:59:59 GMT", http.MethodGet, 0, 3, 0},               // in the past
		{"Sat, 01 Jan 2000 00:10:00 GMT", http.MethodGet, 0, 1, 0},               // too long
	} {
		synctest.Test(t, func(t *testing.T) {
			tries := 0
			w := &retryTransport{base: roundTrip(func(*http.Request) (*http.Response, error) {
				tries++
				return response(http.StatusTooManyRequests, c.retryAfter), nil
			})}
			ctx := t.Context()
			if c.deadline != 0 {
				deadline, cancel := context.WithTimeout(ctx, c.deadline)
				defer cancel()
				ctx = deadline
			}
			req, err := http.NewRequestWithContext(ctx, c.method, "https://example.org/v2/", nil)
			must.NoError(t, err)
			start := time.Now()
			resp, err := w.RoundTrip(req)
			must.NoError(t, err)
			must.Eq(t, http.StatusTooManyRequests, resp.StatusCode)
			must.Eq(t, c.tries, tries, must.Sprintf("%+v", c))
			must.Eq(t, c.took, time.Since(start), must.Sprintf("%+v", c))
		})
	}
}

func TestRetryEndsWithContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		w := &retryTransport{base: roundTrip(func(*http.Request) (*http.Response, error) {
			time.AfterFunc(time.Second, cancel)
			return response(http.StatusTooManyRequests, "20"), nil
		})}
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://example.org/v2/", nil)
		must.NoError(t, err)
		start := time.Now()
		_, err = w.RoundTrip(req)
		must.ErrorIs(t, err, context.Canceled)
		must.Eq(t, time.Second, time.Since(start))
	})
}
