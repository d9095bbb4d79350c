package download

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/pem"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/shoenig/test/must"
)

// published is long before now, so that Last-Modified is a strong validator.
var published = time.Date(2024, 2, 29, 0, 0, 0, 0, time.UTC)

// site serves files over HTTP and records the requests.
type site struct {
	*httptest.Server
	files map[string][]byte // by path

	// before may answer a request itself, by returning true. It receives the number of
	// earlier requests for the path.
	before func(w http.ResponseWriter, r *http.Request, earlier int) bool

	mu       sync.Mutex
	requests []*http.Request
}

// newSite makes a site, which the caller starts with Start or StartTLS.
func newSite(t *testing.T, files map[string][]byte) *site {
	s := &site{files: files}
	s.Server = httptest.NewUnstartedServer(s)
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	t.Cleanup(s.Close)
	return s
}

func (s *site) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	earlier := len(s.asked(r.URL.Path))
	s.mu.Lock()
	s.requests = append(s.requests, r)
	s.mu.Unlock()
	if s.before != nil && s.before(w, r, earlier) {
		return
	}
	content, ok := s.files[r.URL.Path]
	if !ok {
		http.NotFound(w, r)
		return
	}
	http.ServeContent(w, r, "", published, bytes.NewReader(content))
}

// asked returns the requests for a path so far.
func (s *site) asked(path string) []*http.Request {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []*http.Request
	for _, r := range s.requests {
		if r.URL.Path == path {
			all = append(all, r)
		}
	}
	return all
}

// caFile returns the path of the certificate of a site with TLS.
func (s *site) caFile(t *testing.T) string {
	return tempFile(t, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw}))
}

func tempFile(t *testing.T, content []byte) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "file")
	must.NoError(t, os.WriteFile(name, content, 0o600))
	return name
}

// fetch returns what Fetch has written, its digest and its error.
func get(t *testing.T, c Client, r Request) (string, string, error) {
	t.Helper()
	to, err := os.Create(filepath.Join(t.TempDir(), "to"))
	must.NoError(t, err)
	defer to.Close()
	digest, err := c.Fetch(t.Context(), r, to)
	content, readErr := os.ReadFile(to.Name())
	must.NoError(t, readErr)
	return string(content), digest, err
}

func sumOf(content []byte) string {
	sum := sha256.Sum256(content)
	return hex.EncodeToString(sum[:])
}

// listOf returns the output of sha256sum for files.
func listOf(files map[string][]byte) []byte {
	var list []byte
	for name, content := range files {
		list = append(list, sumOf(content)+"  "+path.Base(name)+"\n"...)
	}
	return list
}
