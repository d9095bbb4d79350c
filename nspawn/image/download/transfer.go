package download

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"math"
	"net/http"
	"os"
	"strings"
	"time"

	"nomad-driver-nspawn/nspawn/image/fetch"
)

const (
	maxResumes = 5

	// resumePause is the pause after a request that brought no bytes: a server that
	// restarts is unavailable for a moment.
	resumePause = time.Second
)

// transfer copies a file from its source to the disk.
type transfer struct {
	source   *source
	to       io.Writer
	max      int64
	progress func(done, total int64)

	hash      hash.Hash // hash of the bytes that have arrived
	done      int64     // number of bytes that have arrived
	total     int64     // number of bytes announced, or -1
	validator string    // for If-Range; empty if the download cannot be resumed
}

func newTransfer(c Client, s *source, to *os.File) *transfer {
	t := &transfer{source: s, to: to, max: cmp.Or(c.MaxBytes, math.MaxInt64), progress: c.Progress, hash: sha256.New(), total: -1}
	if c.Tee != nil {
		t.to = io.MultiWriter(to, c.Tee)
	}
	if t.progress == nil {
		t.progress = func(int64, int64) {}
	}
	return t
}

func (t *transfer) digest() string { return algorithm + hex.EncodeToString(t.hash.Sum(nil)) }

func (t *transfer) run(ctx context.Context) error {
	bring := t.download
	if t.source.local() {
		bring = t.copyLocal
	}
	if err := bring(ctx); err != nil {
		return err
	}
	if t.total < 0 {
		t.progress(t.done, t.done)
	}
	return nil
}

func (t *transfer) copyLocal(ctx context.Context) error {
	file, err := openLocal(ctx, t.source.url.Path)
	if err != nil {
		return err
	}
	defer file.Close()
	if err := t.begin(file.size); err != nil {
		return err
	}
	return t.copy(file)
}

// download requests the file, and then the rest of it as often as that can help.
func (t *transfer) download(ctx context.Context) error {
	for resumes := 0; ; resumes++ {
		before := t.done
		err := t.attempt(ctx)
		if err == nil || ctx.Err() != nil || t.validator == "" || !errors.Is(err, fetch.ErrTemporary) {
			return err
		}
		if resumes == maxResumes {
			return fmt.Errorf("%w (for the last of %d times)", err, maxResumes+1)
		}
		if t.done == before {
			select {
			case <-time.After(resumePause):
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
	}
}

// attempt makes one request.
func (t *transfer) attempt(ctx context.Context) error {
	resp, err := t.source.get(ctx, t.source.url, t.rest())
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if t.done == 0 {
		err = t.start(resp)
	} else {
		err = t.resume(resp)
	}
	if err != nil {
		return err
	}
	return t.copy(resp.Body)
}

// rest returns the header of a request for the missing part of the file (RFC 9110, 14.2
// and 13.1.5).
func (t *transfer) rest() http.Header {
	if t.done == 0 {
		return nil
	}
	return http.Header{"Range": {fmt.Sprintf("bytes=%d-", t.done)}, "If-Range": {t.validator}}
}

func (t *transfer) start(resp *http.Response) error {
	if resp.StatusCode != http.StatusOK {
		return status(resp.StatusCode)
	}
	t.validator = validator(resp.Header)
	return t.begin(resp.ContentLength)
}

func (t *transfer) resume(resp *http.Response) error {
	switch resp.StatusCode {
	case http.StatusPartialContent:
		var first int64
		_, err := fmt.Sscanf(resp.Header.Get("Content-Range"), "bytes %d-", &first)
		if err == nil && first == t.done {
			return nil
		}
	case http.StatusOK, http.StatusRequestedRangeNotSatisfiable:
	default:
		return status(resp.StatusCode)
	}
	t.validator = ""
	return fetch.Temporary(fmt.Errorf("the connection broke after %d of %d bytes, and the server now has another file, or cannot resume the download", t.done, t.total))
}

// validator returns a value with which the server can tell whether the file is still the
// same, or an empty string. Only a strong validator can be used (RFC 9110, 8.8.1 and
// 8.8.2.2).
func validator(header http.Header) string {
	if tag := header.Get("ETag"); strings.HasPrefix(tag, `"`) {
		return tag
	}
	changed, err1 := http.ParseTime(header.Get("Last-Modified"))
	now, err2 := http.ParseTime(header.Get("Date"))
	if err1 == nil && err2 == nil && now.Sub(changed) >= time.Second {
		return header.Get("Last-Modified")
	}
	return ""
}

// begin checks and stores the size of the file; -1 means that it is unknown.
func (t *transfer) begin(size int64) error {
	if size > t.max {
		return fmt.Errorf("the file has %d bytes, more than the %d allowed", size, t.max)
	}
	t.total = size
	t.progress(0, size)
	return nil
}

func (t *transfer) copy(from io.Reader) error {
	_, err := io.Copy(t, from)
	if err == nil && t.total >= 0 && t.done != t.total {
		err = fetch.Temporary(io.ErrUnexpectedEOF)
	}
	if err != nil {
		return fmt.Errorf("after %d of %d bytes: %w", t.done, t.total, err)
	}
	return nil
}

// Write processes bytes that have arrived.
func (t *transfer) Write(p []byte) (int, error) {
	if int64(len(p)) > t.max-t.done {
		return 0, fmt.Errorf("the file has more than the %d bytes allowed", t.max)
	}
	n, err := t.to.Write(p)
	t.hash.Write(p[:n])
	t.done += int64(n)
	t.progress(t.done, t.total)
	return n, err
}
