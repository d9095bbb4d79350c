package image

import (
	"archive/tar"
	"bytes"
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/shoenig/test/must"

	"nomad-driver-nspawn/nspawn/image/download"
	"nomad-driver-nspawn/nspawn/image/oci"
	"nomad-driver-nspawn/nspawn/image/store"
)

// lab is a registry and a store.
type lab struct {
	address string
	puller  Puller
	blobs   atomic.Int32             // number of blobs that were fetched
	stall   atomic.Pointer[string]   // blobs whose path has this ending never arrive
	user    atomic.Pointer[oci.Auth] // only this user may read; nil means everybody
}

func newLab(t *testing.T) *lab {
	l := &lab{}
	handler := registry.New()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if user := l.user.Load(); user != nil && r.Method == http.MethodGet {
			if name, password, _ := r.BasicAuth(); *user != (oci.Auth{Username: name, Password: password}) {
				w.Header().Set("WWW-Authenticate", "Basic")
				w.WriteHeader(http.StatusUnauthorized)
				return
			}
		}
		if r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/blobs/") {
			l.blobs.Add(1)
			if stall := l.stall.Load(); stall != nil && strings.HasSuffix(r.URL.Path, *stall) {
				w.WriteHeader(http.StatusOK)
				w.(http.Flusher).Flush()
				<-r.Context().Done()
				return
			}
		}
		handler.ServeHTTP(w, r)
	}))
	t.Cleanup(server.Close)
	l.address = strings.TrimPrefix(server.URL, "http://")
	l.puller = Puller{
		Store:    store.Store{Dir: filepath.Join(t.TempDir(), "store")},
		Registry: oci.Client{PlainHTTP: []string{l.address}},
	}
	return l
}

// push makes an image of layers, the lowest first, and returns its source.
func (l *lab) push(t *testing.T, image string, layers ...map[string]string) Source {
	var built v1.Image = empty.Image
	for _, files := range layers {
		var err error
		built, err = mutate.AppendLayers(built, layerOfTar(t, tarOf(t, files)))
		must.NoError(t, err)
	}
	built, err := mutate.Config(built, v1.Config{Cmd: []string{"run"}, StopSignal: "SIGQUIT"})
	must.NoError(t, err)
	return l.upload(t, image, built)
}

func (l *lab) upload(t *testing.T, image string, built v1.Image) Source {
	reference, err := name.ParseReference(l.address+"/"+image, name.Insecure)
	must.NoError(t, err)
	must.NoError(t, remote.Write(reference, built))
	return l.source(t, image)
}

func layerOfTar(t *testing.T, archive []byte) v1.Layer {
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(archive)), nil })
	must.NoError(t, err)
	return layer
}

func (l *lab) source(t *testing.T, image string) Source {
	reference, err := oci.ParseReference(l.address + "/" + image)
	must.NoError(t, err)
	return Source{Reference: reference}
}

// pull pulls an image and releases it at once.
func (l *lab) pull(ctx context.Context, r Request) (store.Image, error) {
	image, release, err := l.puller.Pull(ctx, r)
	if err == nil {
		release()
	}
	return image, err
}

func tarOf(t *testing.T, files map[string]string) []byte {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for path, content := range files {
		must.NoError(t, w.WriteHeader(&tar.Header{Name: path, Mode: 0o644, Size: int64(len(content))}))
		_, err := w.Write([]byte(content))
		must.NoError(t, err)
	}
	must.NoError(t, w.Close())
	return buf.Bytes()
}

func TestPull(t *testing.T) {
	l := newLab(t)
	lower, upper := map[string]string{"a": "lower"}, map[string]string{"a": "upper", ".wh.b": ""}
	source := l.push(t, "app:1", lower, upper)
	var done, total int64
	image, err := l.pull(t.Context(), Request{Source: source, Progress: func(d, t int64) { done, total = d, t }})
	must.NoError(t, err)
	must.Positive(t, total)
	must.Eq(t, total, done)
	trees := l.puller.Store.Trees(image)
	must.SliceLen(t, 2, trees)
	for i, want := range []string{"upper", "lower"} {
		text, err := os.ReadFile(filepath.Join(trees[i], "a"))
		must.NoError(t, err)
		must.Eq(t, want, string(text))
	}
	config, err := Config(image)
	must.NoError(t, err)
	must.Eq(t, oci.Config{Cmd: []string{"run"}, StopSignal: "SIGQUIT"}, config)

	fetched := l.blobs.Load()
	again, err := l.pull(t.Context(), Request{Source: source, Policy: Missing})
	must.NoError(t, err)
	must.Eq(t, image.Layers, again.Layers)
	must.Eq(t, fetched, l.blobs.Load())

	l.push(t, "app:1", lower) // the tag moves
	moved, err := l.pull(t.Context(), Request{Source: source, Policy: Missing})
	must.NoError(t, err)
	must.Eq(t, image.Layers, moved.Layers)
	moved, err = l.pull(t.Context(), Request{Source: source, Policy: Always})
	must.NoError(t, err)
	must.Eq(t, trees[1:], l.puller.Store.Trees(moved))
	must.Eq(t, fetched+1, l.blobs.Load()) // only the config
}

// TestPullLayerWithoutEnd checks that the digest in the config decides whether a layer is
// complete, and not the end of the archive, which umoci insert omits.
func TestPullLayerWithoutEnd(t *testing.T) {
	l := newLab(t)
	whole := tarOf(t, map[string]string{"a": "b"})
	cut, err := mutate.AppendLayers(empty.Image, layerOfTar(t, whole[:len(whole)-2*512]))
	must.NoError(t, err)
	image, err := l.pull(t.Context(), Request{Source: l.upload(t, "umoci:1", cut)})
	must.NoError(t, err)
	must.FileContains(t, filepath.Join(l.puller.Store.Trees(image)[0], "a"), "b")

	config, err := cut.ConfigFile()
	must.NoError(t, err)
	config.RootFS.DiffIDs[0], err = layerOfTar(t, whole).DiffID()
	must.NoError(t, err)
	other, err := mutate.ConfigFile(cut, config)
	must.NoError(t, err)
	_, err = l.pull(t.Context(), Request{Source: l.upload(t, "cut:1", other)})
	must.ErrorContains(t, err, "but its config says "+config.RootFS.DiffIDs[0].String())
	must.False(t, Temporary(err))
}

func TestPullNever(t *testing.T) {
	l := newLab(t)
	source := l.push(t, "app:1", map[string]string{"a": ""})
	_, err := l.pull(t.Context(), Request{Source: source, Policy: Never})
	must.ErrorContains(t, err, "pull_policy is never")
	must.False(t, Temporary(err))
	image, err := l.pull(t.Context(), Request{Source: source})
	must.NoError(t, err)
	again, err := l.pull(t.Context(), Request{Source: source, Policy: Never})
	must.NoError(t, err)
	must.Eq(t, image.Layers, again.Layers)
}

// overlayfs refuses a layer that is given twice, and shows the layers below an opaque
// root.
func TestPullLayersOfAnOverlay(t *testing.T) {
	l := newLab(t)
	a, b, opaque := map[string]string{"a": ""}, map[string]string{"b": ""}, map[string]string{"c": "", ".wh..wh..opq": ""}
	image, err := l.pull(t.Context(), Request{Source: l.push(t, "twice:1", a, b, a)})
	must.NoError(t, err)
	must.SliceLen(t, 2, image.Layers)
	top := image.Layers[0]
	image, err = l.pull(t.Context(), Request{Source: l.push(t, "opaque:1", b, opaque, a)})
	must.NoError(t, err)
	must.SliceLen(t, 2, image.Layers)
	must.Eq(t, top, image.Layers[0])
}

// The same bytes can be a tarball, with plain files, and an OCI layer, with whiteouts.
// The two must not be mixed up.
func TestPullTarballIsNoLayer(t *testing.T) {
	l := newLab(t)
	files := map[string]string{"etc/.wh.shadow": ""}
	path := filepath.Join(t.TempDir(), "image.tar")
	must.NoError(t, os.WriteFile(path, tarOf(t, files), 0o644))
	local := Source{Download: download.Request{URL: path, Verify: download.VerifyNo}}
	image, err := l.pull(t.Context(), Request{Source: local})
	must.NoError(t, err)
	_, err = os.Stat(filepath.Join(l.puller.Store.Trees(image)[0], "etc/.wh.shadow"))
	must.NoError(t, err)
	image, err = l.pull(t.Context(), Request{Source: l.push(t, "app:1", files)})
	must.NoError(t, err)
	info, err := os.Stat(filepath.Join(l.puller.Store.Trees(image)[0], "etc/shadow"))
	must.NoError(t, err)
	must.NotEq(t, 0, info.Mode()&os.ModeCharDevice)
}

// Images that are held are not collected, whether they were pulled now or earlier.
func TestPullHolds(t *testing.T) {
	l := newLab(t)
	source := l.push(t, "app:1", map[string]string{"a": ""})
	for range 2 {
		image, release, err := l.puller.Pull(t.Context(), Request{Source: source})
		must.NoError(t, err)
		removed, err := l.puller.Store.Collect(t.Context(), store.CollectOptions{UnusedFor: time.Nanosecond})
		must.NoError(t, err)
		must.SliceEmpty(t, removed)
		_, err = l.puller.Store.Acquire(t.Context(), "machine", image.Digest)
		must.NoError(t, err)
		must.NoError(t, l.puller.Store.Release(t.Context(), "machine"))
		release()
	}
	removed, err := l.puller.Store.Collect(t.Context(), store.CollectOptions{UnusedFor: time.Nanosecond})
	must.NoError(t, err)
	must.SliceLen(t, 1, removed)
}

func TestPullOnce(t *testing.T) {
	l := newLab(t)
	source := l.push(t, "app:1", map[string]string{"a": ""}, map[string]string{"b": ""})
	var all sync.WaitGroup
	for range 20 {
		all.Go(func() {
			_, err := l.pull(t.Context(), Request{Source: source})
			must.NoError(t, err)
		})
	}
	all.Wait()
	must.Between(t, 3, l.blobs.Load(), 22) // each of them may request the config
}

func TestPullThatStalls(t *testing.T) {
	l := newLab(t)
	source := l.push(t, "app:1", map[string]string{"a": "a"})
	found, err := l.puller.Registry.Resolve(t.Context(), source.Reference, nil, false)
	must.NoError(t, err)
	for _, stall := range []string{"", found.Layers[0].Digest} { // the config, or the layer
		l.stall.Store(&stall)
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		_, err = l.pull(ctx, Request{Source: source, Inactivity: 50 * time.Millisecond})
		must.ErrorContains(t, err, "for 50ms")
		must.True(t, Temporary(err))
		must.NoError(t, ctx.Err())
		left, _ := os.ReadDir(filepath.Join(l.puller.Store.Dir, "tmp"))
		must.SliceEmpty(t, left)
	}
}

// TestPullOfOthers uses a private image that one task has pulled. Another task gets it
// only if the registry gives it to that task, too.
func TestPullOfOthers(t *testing.T) {
	l := newLab(t)
	source := l.push(t, "private:1", map[string]string{"a": ""})
	l.user.Store(&oci.Auth{Username: "me", Password: "secret"})
	me, other := &oci.Auth{Username: "me", Password: "secret"}, &oci.Auth{Username: "other", Password: "secret"}
	_, err := l.pull(t.Context(), Request{Source: source, Auth: me})
	must.NoError(t, err)
	for _, auth := range []*oci.Auth{nil, other} {
		_, err = l.pull(t.Context(), Request{Source: source, Auth: auth})
		must.ErrorContains(t, err, "401")
		_, err = l.pull(t.Context(), Request{Source: source, Auth: auth, Policy: Never})
		must.ErrorContains(t, err, "is not on this client")
	}
	fetched := l.blobs.Load()
	_, err = l.pull(t.Context(), Request{Source: source, Auth: me})
	must.NoError(t, err)
	must.Eq(t, fetched, l.blobs.Load())
	list, err := l.puller.Store.List(t.Context())
	must.NoError(t, err)
	must.StrNotContains(t, strings.Join(list.Images[0].Names, " "), "secret")
}

func TestNames(t *testing.T) {
	plain := Source{Download: download.Request{URL: "https://example.org/a.tar", Verify: download.VerifyChecksum}}
	signed := Source{Download: download.Request{URL: "https://example.org/a.tar", Verify: download.VerifySignature}}
	mine := Source{Download: download.Request{URL: "https://me:secret@example.org/a.tar?key=1", Verify: download.VerifyChecksum}}
	yours := Source{Download: download.Request{URL: "https://you:secret@example.org/a.tar?key=1", Verify: download.VerifyChecksum}}
	names := map[string]bool{}
	for _, source := range []Source{plain, signed, mine, yours} {
		must.StrNotContains(t, source.Name()+source.String(), "secret")
		names[source.Name()] = true
	}
	changed := plain
	changed.Version = "2"
	names[changed.Name()] = true
	must.MapLen(t, 5, names)
	must.Eq(t, Always, Source{Reference: oci.Reference{Repository: "a", Tag: "latest"}}.DefaultPolicy())
	must.Eq(t, Missing, Source{Reference: oci.Reference{Repository: "a", Tag: "1"}}.DefaultPolicy())
	must.Eq(t, Missing, plain.DefaultPolicy())
}
