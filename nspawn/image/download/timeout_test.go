package download

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/shoenig/test/must"
)

func TestTimeouts(t *testing.T) {
	for _, c := range []struct {
		name   string
		client Client
		body   string
		want   string
	}{
		{"no answer", Client{Inactivity: 50 * time.Millisecond}, "", "the server has sent nothing for 50ms"},
		{"half an answer", Client{Inactivity: 50 * time.Millisecond}, "half", "the server has sent nothing for 50ms"},
		{"total", Client{Total: 50 * time.Millisecond}, "half", "not finished after 50ms"},
		{"total, while there is no answer", Client{Total: 50 * time.Millisecond, Inactivity: time.Hour}, "", "not finished after 50ms"},
	} {
		t.Run(c.name, func(t *testing.T) {
			url := stalling(t, c.body, nil)
			_, _, err := get(t, c.client, Request{URL: url, Verify: VerifyNo})
			must.ErrorContains(t, err, c.want)
			must.ErrorIs(t, err, ErrTemporary)
			_, err = c.client.Resolve(t.Context(), Request{URL: url, Verify: VerifyChecksum})
			must.ErrorContains(t, err, c.want)
			must.ErrorIs(t, err, ErrTemporary)
		})
	}
}

// TestCancel cancels the caller's context.
func TestCancel(t *testing.T) {
	for _, body := range []string{"", "half"} {
		cause := errors.New("job stopped")
		ctx, cancel := context.WithCancelCause(t.Context())
		url := stalling(t, body, func() { cancel(cause) })
		_, err := Client{}.Resolve(ctx, Request{URL: url, Verify: VerifyChecksum})
		must.ErrorIs(t, err, cause)
		must.False(t, isTemporary(err))
	}
}

// stalling returns the URL of a server that sends body and nothing else, and then calls
// stalled.
func stalling(t *testing.T, body string, stalled func()) string {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if body != "" {
			w.Header().Set("Content-Length", "1000")
			_, _ = w.Write([]byte(body))
			w.(http.Flusher).Flush()
		}
		if stalled != nil {
			stalled()
		}
		<-r.Context().Done()
	}))
	t.Cleanup(server.Close)
	return server.URL + "/x.tar"
}
