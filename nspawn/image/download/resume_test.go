package download

import (
	"bytes"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/shoenig/test/must"
)

// step is a number of bytes after which a connection is cut.
const step = 200_000

// cutting makes a site that cuts every connection for /x.tar after step bytes. If tamper
// is not nil, it is called first.
func cutting(t *testing.T, tamper func(w http.ResponseWriter, r *http.Request, earlier int) bool) *site {
	t.Helper()
	site := newSite(t, map[string][]byte{"/x.tar": big})
	site.before = func(w http.ResponseWriter, r *http.Request, earlier int) bool {
		if tamper != nil && tamper(w, r, earlier) {
			return true
		}
		http.ServeContent(&cutWriter{w, step}, r, "", published, bytes.NewReader(big))
		return true
	}
	site.Start()
	return site
}

// cutWriter writes only some bytes, and then the server cuts the connection.
type cutWriter struct {
	http.ResponseWriter
	left int
}

func (w *cutWriter) Write(p []byte) (int, error) {
	n, err := w.ResponseWriter.Write(p[:min(len(p), w.left)])
	if w.left -= n; w.left == 0 {
		w.ResponseWriter.(http.Flusher).Flush()
		panic(http.ErrAbortHandler)
	}
	return n, err
}

func TestResume(t *testing.T) {
	for _, c := range []struct{ name, tag string }{
		{"by ETag", `"one"`},
		{"by Last-Modified", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			site := cutting(t, func(w http.ResponseWriter, _ *http.Request, _ int) bool {
				if c.tag != "" {
					w.Header().Set("ETag", c.tag)
				}
				return false
			})
			var reports progress
			client := Client{Progress: reports.add}
			content, digest, err := get(t, client, Request{URL: site.URL + "/x.tar", Verify: VerifyNo})
			must.NoError(t, err)
			must.True(t, content == string(big))
			must.EqOp(t, "sha256:"+sumOf(big), digest)
			reports.check(t, int64(len(big)))

			asked := site.asked("/x.tar")
			must.SliceLen(t, len(big)/step+1, asked)
			must.EqOp(t, "", asked[0].Header.Get("Range"))
			for i, r := range asked[1:] {
				must.EqOp(t, fmt.Sprintf("bytes=%d-", (i+1)*step), r.Header.Get("Range"))
				want := c.tag
				if want == "" {
					want = published.Format(http.TimeFormat)
				}
				must.EqOp(t, want, r.Header.Get("If-Range"))
			}
		})
	}
}

// TestResumePieces uses a server that returns less than the requested range, as it may
// (RFC 9110, 15.3.7).
func TestResumePieces(t *testing.T) {
	site := cutting(t, func(w http.ResponseWriter, r *http.Request, earlier int) bool {
		if earlier > 0 {
			r.Header.Set("Range", fmt.Sprintf("%s%d", r.Header.Get("Range"), (earlier+1)*step-2))
		}
		return false
	})
	content, _, err := get(t, Client{}, Request{URL: site.URL + "/x.tar", SHA256: sumOf(big)})
	must.NoError(t, err)
	must.True(t, content == string(big))
	must.SliceLen(t, 6, site.asked("/x.tar"))
}

// TestResumeGivesUp checks the number of requests.
func TestResumeGivesUp(t *testing.T) {
	site := cutting(t, nil)
	content := strings.Repeat(string(big), 2)
	site.before = func(w http.ResponseWriter, r *http.Request, _ int) bool {
		http.ServeContent(&cutWriter{w, step}, r, "", published, strings.NewReader(content))
		return true
	}
	_, _, err := get(t, Client{}, Request{URL: site.URL + "/x.tar", Verify: VerifyNo})
	must.ErrorIs(t, err, ErrTemporary)
	must.ErrorContains(t, err, fmt.Sprintf("after %d of %d bytes: unexpected EOF (for the last of 6 times)", 6*step, len(content)))
	must.SliceLen(t, 6, site.asked("/x.tar"))
}

// TestResumeAfterBusy uses a server that restarts.
func TestResumeAfterBusy(t *testing.T) {
	site := cutting(t, func(w http.ResponseWriter, r *http.Request, earlier int) bool {
		switch earlier {
		case 0:
			return false
		case 1:
			w.WriteHeader(http.StatusServiceUnavailable)
		default:
			http.ServeContent(w, r, "", published, bytes.NewReader(big))
		}
		return true
	})
	began := time.Now()
	content, _, err := get(t, Client{}, Request{URL: site.URL + "/x.tar", Verify: VerifyNo})
	must.NoError(t, err)
	must.True(t, content == string(big))
	must.GreaterEq(t, resumePause, time.Since(began))
}

// TestNotResumed checks answers to the second request, after step bytes.
func TestNotResumed(t *testing.T) {
	since := fmt.Sprintf("the connection broke after %d of %d bytes, and the server now has another file, or cannot resume the download", step, len(big))
	for _, c := range []struct {
		name      string
		tamper    func(w http.ResponseWriter, r *http.Request) bool
		temporary bool
		want      string
	}{
		{"other file", func(w http.ResponseWriter, _ *http.Request) bool {
			w.Header().Set("ETag", `"two"`)
			return false
		}, true, since},
		{"no ranges", func(_ http.ResponseWriter, r *http.Request) bool {
			r.Header.Del("Range")
			return false
		}, true, since},
		{"shorter file", func(w http.ResponseWriter, _ *http.Request) bool {
			w.WriteHeader(http.StatusRequestedRangeNotSatisfiable)
			return true
		}, true, since},
		{"other range", func(w http.ResponseWriter, r *http.Request) bool {
			r.Header.Set("Range", fmt.Sprintf("bytes=%d-", step-1))
			return false
		}, true, since},
		{"no word of the range", func(w http.ResponseWriter, _ *http.Request) bool {
			w.WriteHeader(http.StatusPartialContent)
			_, _ = w.Write(big[step:])
			return true
		}, true, since},
		{"file is gone", func(w http.ResponseWriter, r *http.Request) bool {
			http.NotFound(w, r)
			return true
		}, false, "404 Not Found"},
	} {
		t.Run(c.name, func(t *testing.T) {
			site := cutting(t, func(w http.ResponseWriter, r *http.Request, earlier int) bool {
				w.Header().Set("ETag", `"one"`)
				return earlier > 0 && c.tamper(w, r)
			})
			_, digest, err := get(t, Client{}, Request{URL: site.URL + "/x.tar", Verify: VerifyNo})
			must.ErrorContains(t, err, c.want)
			must.EqOp(t, c.temporary, isTemporary(err))
			must.EqOp(t, "", digest)
			must.SliceLen(t, 2, site.asked("/x.tar"))
		})
	}
}

// TestTruncated uses a file without a strong validator, so that its rest cannot be
// requested.
func TestTruncated(t *testing.T) {
	for _, header := range []http.Header{
		{},
		{"Etag": {`W/"weak"`}},
		{"Last-Modified": {"yesterday"}},
		{"Last-Modified": {published.Format(http.TimeFormat)}, "Date": {published.Format(http.TimeFormat)}}, // the same second
	} {
		site := newSite(t, nil)
		site.before = func(w http.ResponseWriter, _ *http.Request, _ int) bool {
			for key, values := range header {
				w.Header()[key] = values
			}
			w.Header().Set("Content-Length", fmt.Sprint(len(big)))
			cut := cutWriter{w, step}
			_, _ = cut.Write(big)
			return true
		}
		site.Start()
		_, _, err := get(t, Client{}, Request{URL: site.URL + "/x.tar", SHA256: sumOf(big)})
		must.ErrorContains(t, err, fmt.Sprintf("after %d of %d bytes: unexpected EOF", step, len(big)))
		must.ErrorIs(t, err, ErrTemporary)
		must.SliceLen(t, 1, site.asked("/x.tar"))
	}
}
