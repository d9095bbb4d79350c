package download

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"
)

// big is an image that arrives in many pieces, which all differ.
var big = func() []byte {
	content := make([]byte, 1<<20)
	_, _ = rand.NewChaCha8([32]byte{}).Read(content)
	return content
}()

func TestMaxBytes(t *testing.T) {
	announced := newSite(t, map[string][]byte{"/x.tar": big})
	announced.Start()
	chunked := newSite(t, nil)
	chunked.before = func(w http.ResponseWriter, _ *http.Request, _ int) bool {
		_, _ = w.Write(big)
		return true
	}
	chunked.Start()
	local := tempFile(t, big)
	size := int64(len(big))
	for _, c := range []struct {
		url  string
		want string // expected error
		come int    // maximum number of bytes that arrive before the end
	}{
		{announced.URL + "/x.tar", fmt.Sprintf("the file has %d bytes, more than the %d allowed", size, size-1), 0},
		{local, fmt.Sprintf("the file has %d bytes, more than the %d allowed", size, size-1), 0},
		{chunked.URL + "/x.tar", fmt.Sprintf("the file has more than the %d bytes allowed", size-1), len(big) - 1},
	} {
		r := Request{URL: c.url, Verify: VerifyNo}
		content, _, err := get(t, Client{MaxBytes: size}, r)
		must.NoError(t, err)
		must.True(t, content == string(big))
		content, _, err = get(t, Client{MaxBytes: size - 1}, r)
		must.ErrorContains(t, err, c.want)
		must.False(t, isTemporary(err))
		must.LessEq(t, c.come, len(content))
	}
}

// progress records the reports.
type progress struct{ done, total []int64 }

func (p *progress) add(done, total int64) {
	p.done, p.total = append(p.done, done), append(p.total, total)
}

// check checks properties of the reports for every file that has arrived.
func (p *progress) check(t *testing.T, size int64) {
	t.Helper()
	must.SliceNotEmpty(t, p.done)
	must.EqOp(t, 0, p.done[0])
	must.True(t, slices.IsSorted(p.done))
	must.EqOp(t, size, p.done[len(p.done)-1])
	must.EqOp(t, size, p.total[len(p.total)-1])
}

func TestProgress(t *testing.T) {
	site := newSite(t, map[string][]byte{"/x.tar": big, "/empty.tar": nil})
	site.before = func(w http.ResponseWriter, r *http.Request, _ int) bool {
		if r.URL.Path != "/chunked.tar" {
			return false
		}
		_, _ = w.Write(big)
		return true
	}
	site.Start()
	for _, c := range []struct {
		url   string
		total int64 // from the first report
		size  int
	}{
		{site.URL + "/x.tar", int64(len(big)), len(big)},
		{site.URL + "/chunked.tar", -1, len(big)},
		{site.URL + "/empty.tar", 0, 0},
		{tempFile(t, big), int64(len(big)), len(big)},
		{tempFile(t, nil), 0, 0},
	} {
		var reports progress
		content, _, err := get(t, Client{Progress: reports.add}, Request{URL: c.url, Verify: VerifyNo})
		must.NoError(t, err)
		must.EqOp(t, c.size, len(content))
		must.EqOp(t, c.total, reports.total[0])
		reports.check(t, int64(c.size))
	}
}

func TestLocalRefused(t *testing.T) {
	dir := t.TempDir()
	fifo := filepath.Join(dir, "fifo.tar")
	must.NoError(t, unix.Mkfifo(fifo, 0o600))
	for path, want := range map[string]string{
		filepath.Join(dir, "absent.tar"): "absent.tar: file is not there",
		dir:                              "is not a regular file",
		fifo:                             "is not a regular file",
		"/dev/null":                      "is not a regular file",
	} {
		_, _, err := get(t, Client{}, Request{URL: path, Verify: VerifyNo})
		must.ErrorContains(t, err, want)
		must.False(t, isTemporary(err))
	}
}

// TestLocalCancelled stops in the middle of a file.
func TestLocalCancelled(t *testing.T) {
	cause := errors.New("job stopped")
	ctx, cancel := context.WithCancelCause(t.Context())
	c := Client{Progress: func(done, _ int64) {
		if done > 0 {
			cancel(cause)
		}
	}}
	to, err := os.OpenFile(tempFile(t, nil), os.O_RDWR, 0)
	must.NoError(t, err)
	defer to.Close()
	_, err = c.Fetch(ctx, Request{URL: tempFile(t, big), Verify: VerifyNo}, to)
	must.ErrorIs(t, err, cause)
	info, err := to.Stat()
	must.NoError(t, err)
	must.Positive(t, info.Size())
	must.Less(t, int64(len(big)), info.Size())
}

// TestTarget tests the file into which Fetch writes.
func TestTarget(t *testing.T) {
	r := Request{URL: tempFile(t, big), Verify: VerifyNo}
	used, err := os.OpenFile(tempFile(t, []byte("used")), os.O_RDWR, 0)
	must.NoError(t, err)
	defer used.Close()
	_, err = Client{}.Fetch(t.Context(), r, used)
	must.ErrorContains(t, err, "is not empty")
	content, err := io.ReadAll(used)
	must.NoError(t, err)
	must.EqOp(t, "used", string(content))

	readOnly, err := os.Open(tempFile(t, nil))
	must.NoError(t, err)
	defer readOnly.Close()
	_, err = Client{}.Fetch(t.Context(), r, readOnly)
	must.ErrorIs(t, err, unix.EBADF)
	must.False(t, isTemporary(err))
}
