package oci

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/pem"
	"errors"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-containerregistry/pkg/compression"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/shoenig/test/must"
)

// server is a registry over plain HTTP.
type server struct {
	*httptest.Server
	host string

	mu       sync.Mutex
	requests []string // method and path
}

// newServer starts a registry. before may answer a request itself, by returning true. It
// does not see the requests of push.
func newServer(t *testing.T, before func(http.ResponseWriter, *http.Request) bool) *server {
	t.Helper()
	s := &server{}
	s.Server = httptest.NewServer(s.handler(before))
	s.host = strings.TrimPrefix(s.URL, "http://")
	t.Cleanup(s.Close)
	return s
}

func (s *server) handler(before func(http.ResponseWriter, *http.Request) bool) http.Handler {
	next := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("X-Test-Push") != "" {
			next.ServeHTTP(w, r)
			return
		}
		s.mu.Lock()
		s.requests = append(s.requests, r.Method+" "+r.URL.Path)
		s.mu.Unlock()
		if before == nil || !before(w, r) {
			next.ServeHTTP(w, r)
		}
	})
}

// seen returns how many requests contain part, without those of push.
func (s *server) seen(part string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for _, r := range s.requests {
		if strings.Contains(r, part) {
			n++
		}
	}
	return n
}

// client returns a client that uses the servers.
func client(servers ...*server) Client {
	c := Client{Platform: "linux/amd64"}
	for _, s := range servers {
		c.PlainHTTP = append(c.PlainHTTP, s.host)
	}
	return c
}

// pushing marks requests that prepare a test.
type pushing struct{ base http.RoundTripper }

func (p pushing) RoundTrip(r *http.Request) (*http.Response, error) {
	r.Header.Set("X-Test-Push", "1")
	return p.base.RoundTrip(r)
}

func (s *server) push(t *testing.T, ref string, what remote.Taggable) {
	t.Helper()
	tag, err := name.ParseReference(s.host+"/"+ref, name.Insecure)
	must.NoError(t, err)
	opts := remote.WithTransport(pushing{s.Client().Transport})
	switch what := what.(type) {
	case v1.ImageIndex:
		must.NoError(t, remote.WriteIndex(tag, what, opts))
	case v1.Image:
		must.NoError(t, remote.Write(tag, what, opts))
	default:
		must.NoError(t, remote.Put(tag, what, opts))
	}
}

func (s *server) ref(t *testing.T, ref string) Reference {
	t.Helper()
	parsed, err := ParseReference(s.host + "/" + ref)
	must.NoError(t, err)
	return parsed
}

// rawManifest is pushed unchanged.
type rawManifest struct {
	mediaType types.MediaType
	text      string
}

func (m rawManifest) RawManifest() ([]byte, error)        { return []byte(m.text), nil }
func (m rawManifest) MediaType() (types.MediaType, error) { return m.mediaType, nil }

// newImage returns an image for a platform. It has one layer for each text, with a file
// that contains the text.
func newImage(t *testing.T, on string, layers ...v1.Layer) v1.Image {
	t.Helper()
	p := platform(t, on)
	image, err := mutate.ConfigFile(empty.Image, &v1.ConfigFile{
		OS: p.OS, Architecture: p.Architecture, Variant: p.Variant,
		Config: v1.Config{
			Entrypoint: []string{"/entry"}, Cmd: []string{"a", "b"}, Env: []string{"A=1"}, User: "33:33",
			WorkingDir: "/srv", StopSignal: "SIGINT", Volumes: map[string]struct{}{"/b": {}, "/a": {}},
		},
	})
	must.NoError(t, err)
	image, err = mutate.AppendLayers(image, layers...)
	must.NoError(t, err)
	return image
}

func newLayer(t *testing.T, text string, opts ...tarball.LayerOption) v1.Layer {
	t.Helper()
	raw := newTar(t, tarFile("file", text))
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(raw)), nil }, opts...)
	must.NoError(t, err)
	return layer
}

func newZstdLayer(t *testing.T, text string) v1.Layer {
	t.Helper()
	return newLayer(t, text, tarball.WithCompression(compression.ZStd), tarball.WithMediaType(types.OCILayerZStd))
}

// tarEntry is a header with its content.
type tarEntry struct {
	tar.Header
	text string
}

func tarFile(name, text string) tarEntry {
	return tarEntry{tar.Header{Name: name, Mode: 0o644, Typeflag: tar.TypeReg, Size: int64(len(text))}, text}
}

func newTar(t testing.TB, entries ...tarEntry) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, e := range entries {
		must.NoError(t, w.WriteHeader(&e.Header))
		_, err := io.WriteString(w, e.text)
		must.NoError(t, err)
	}
	must.NoError(t, w.Close())
	return buf.Bytes()
}

func resolve(t *testing.T, c Client, ref Reference) *Image {
	t.Helper()
	image, err := c.Resolve(t.Context(), ref, nil, false)
	must.NoError(t, err)
	return image
}

// requireSame compares what was resolved and read with the original.
func requireSame(t *testing.T, want v1.Image, got *Image) {
	t.Helper()
	digest, err := want.Digest()
	must.NoError(t, err)
	must.Eq(t, digest.String(), got.Digest)
	requireSameContent(t, want, got)
}

// requireSameContent compares the config and the layers as they are stored.
func requireSameContent(t *testing.T, want v1.Image, got *Image) {
	t.Helper()
	must.Eq(t, Config{
		Entrypoint: []string{"/entry"}, Cmd: []string{"a", "b"}, Env: []string{"A=1"}, User: "33:33",
		WorkingDir: "/srv", StopSignal: "SIGINT", Volumes: []string{"/a", "/b"},
	}, got.Config)
	layers, err := want.Layers()
	must.NoError(t, err)
	must.Eq(t, len(layers), len(got.Layers))
	for i, layer := range layers {
		digest, err := layer.Digest()
		must.NoError(t, err)
		diffID, err := layer.DiffID()
		must.NoError(t, err)
		must.Eq(t, digest.String(), got.Layers[i].Digest)
		must.Eq(t, diffID.String(), got.Layers[i].DiffID)
		requireSameBytes(t, layer.Compressed, got.Layers[i])
	}
}

func requireSameBytes(t *testing.T, open func() (io.ReadCloser, error), got Layer) {
	t.Helper()
	want, err := open()
	must.NoError(t, err)
	defer want.Close()
	raw, err := io.ReadAll(want)
	must.NoError(t, err)
	read, err := readLayer(t.Context(), got)
	must.NoError(t, err)
	must.True(t, bytes.Equal(raw, read))
	must.Eq(t, int64(len(raw)), got.Size)
}

func readLayer(ctx context.Context, l Layer) ([]byte, error) {
	r, err := l.Open(ctx)
	if err != nil {
		return nil, err
	}
	raw, err := io.ReadAll(r)
	return raw, errors.Join(err, r.Close())
}

// requireFailure checks the text and the class of an error.
func requireFailure(t *testing.T, err error, temporary bool, want string) {
	t.Helper()
	must.ErrorContains(t, err, want)
	must.Eq(t, temporary, errors.Is(err, ErrTemporary), must.Sprint(err))
	must.False(t, strings.Contains(err.Error(), "\n"), must.Sprint(err))
}

func writeFile(t *testing.T, name string, content []byte, mode os.FileMode) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	must.NoError(t, os.WriteFile(path, content, mode))
	return path
}

func writeCA(t *testing.T, s *httptest.Server) string {
	t.Helper()
	return writeFile(t, "ca.pem", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw}), 0o644)
}
