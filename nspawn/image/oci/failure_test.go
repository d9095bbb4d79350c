package oci

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/shoenig/test/must"
)

// answer answers all requests for paths that contain part.
func answer(part string, status int, header http.Header, body string) func(http.ResponseWriter, *http.Request) bool {
	return func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.Contains(r.URL.Path, part) {
			return false
		}
		for key, values := range header {
			w.Header()[key] = values
		}
		w.WriteHeader(status)
		fmt.Fprint(w, body)
		return true
	}
}

func TestStatus(t *testing.T) {
	for _, c := range []struct {
		status    int
		body      string
		temporary bool
		want      string
		tries     int
	}{
		{http.StatusUnauthorized, "", false, "401: set auth { }", 1},
		{http.StatusForbidden, `{"errors":[{"code":"DENIED","message":"no"}]}`, false, "403: the credentials", 1},
		{http.StatusNotFound, `{"errors":[{"code":"MANIFEST_UNKNOWN","message":"gone"}]}`, false, "MANIFEST_UNKNOWN: gone (404: there is no such image, tag or blob)", 1},
		{http.StatusTooManyRequests, `{"errors":[{"code":"TOOMANYREQUESTS","message":"slow"}]}`, true, "429: too many requests", 3},
		{http.StatusInternalServerError, "line\nline", true, "unexpected status code 500 Internal Server Error: line", 3},
		{http.StatusServiceUnavailable, "", true, "503", 3},
		{http.StatusTeapot, "", false, "418", 1},
	} {
		s := newServer(t, answer("/manifests/", c.status, nil, c.body))
		_, err := client(s).Resolve(t.Context(), s.ref(t, "app:1"), nil, false)
		requireFailure(t, err, c.temporary, c.want)
		must.StrHasPrefix(t, "resolve image "+s.host+"/app:1: ", err.Error())
		must.Eq(t, c.tries, s.seen("/manifests/"))
	}
}

func TestRecoversFromBusyRegistry(t *testing.T) {
	failures := make(chan struct{}, 2)
	failures <- struct{}{}
	failures <- struct{}{}
	s := newServer(t, func(w http.ResponseWriter, r *http.Request) bool {
		select {
		case <-failures:
			w.WriteHeader(http.StatusBadGateway)
			return true
		default:
			return false
		}
	})
	image := newImage(t, "linux/amd64", newLayer(t, "one"))
	s.push(t, "app:1", image)
	requireSame(t, image, resolve(t, client(s), s.ref(t, "app:1")))
	must.SliceEmpty(t, []struct{}{}[:len(failures)])
}

func TestNoServer(t *testing.T) {
	s := newServer(t, nil)
	s.Close()
	_, err := client(s).Resolve(t.Context(), s.ref(t, "app:1"), nil, false)
	requireFailure(t, err, true, "connection refused")
	must.ErrorContains(t, err, "resolve image "+s.host+"/app:1")
}

// stall blocks requests for paths that contain part, and reports each.
func stall(part string) (before func(http.ResponseWriter, *http.Request) bool, stalled chan struct{}) {
	stalled = make(chan struct{}, 10)
	return func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.Contains(r.URL.Path, part) {
			return false
		}
		stalled <- struct{}{}
		<-r.Context().Done()
		return true
	}, stalled
}

func TestStallingServer(t *testing.T) {
	for _, part := range []string{"/v2/", "/manifests/", "/blobs/"} {
		before, stalled := stall(part)
		s := newServer(t, before)
		s.push(t, "app:1", newImage(t, "linux/amd64"))
		ctx, cancel := context.WithCancel(t.Context())
		go func() {
			<-stalled
			cancel()
		}()
		_, err := client(s).Resolve(ctx, s.ref(t, "app:1"), nil, true)
		must.ErrorIs(t, err, context.Canceled)
		requireFailure(t, err, false, "resolve image")
	}
}

func TestDeadlineIsTemporary(t *testing.T) {
	before, _ := stall("/manifests/")
	s := newServer(t, before)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err := client(s).Resolve(ctx, s.ref(t, "app:1"), nil, false)
	must.ErrorIs(t, err, context.DeadlineExceeded)
	requireFailure(t, err, true, "resolve image")
}

// layerServer serves an image with one layer, for which serve answers.
func layerServer(t *testing.T, serve func(w http.ResponseWriter, r *http.Request, raw []byte)) Layer {
	t.Helper()
	layer := newLayer(t, strings.Repeat("some text ", 1000))
	digest, err := layer.Digest()
	must.NoError(t, err)
	r, err := layer.Compressed()
	must.NoError(t, err)
	raw, err := io.ReadAll(r)
	must.NoError(t, err)
	s := newServer(t, func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.HasSuffix(r.URL.Path, digest.String()) {
			return false
		}
		serve(w, r, raw)
		return true
	})
	s.push(t, "app:1", newImage(t, "linux/amd64", layer))
	return resolve(t, client(s), s.ref(t, "app:1")).Layers[0]
}

func TestBrokenBlobs(t *testing.T) {
	for name, c := range map[string]struct {
		serve     func(w http.ResponseWriter, raw []byte)
		temporary bool
		want      string
	}{
		"cut connection": {func(w http.ResponseWriter, raw []byte) {
			w.Header().Set("Content-Length", fmt.Sprint(len(raw)))
			_, _ = w.Write(raw[:len(raw)/2])
			w.(http.Flusher).Flush()
			panic(http.ErrAbortHandler)
		}, true, "unexpected EOF"},
		"cut file": {func(w http.ResponseWriter, raw []byte) {
			_, _ = w.Write(raw[:len(raw)/2])
		}, true, "truncated: got "},
		"cut chunked": {func(w http.ResponseWriter, raw []byte) {
			_, _ = w.Write(raw[:len(raw)/2])
			w.(http.Flusher).Flush()
		}, true, "truncated: got "},
		"wrong bytes": {func(w http.ResponseWriter, raw []byte) {
			wrong := append([]byte("x"), raw[1:]...)
			_, _ = w.Write(wrong)
		}, false, "error verifying sha256 checksum"},
		"longer": {func(w http.ResponseWriter, raw []byte) {
			_, _ = w.Write(append(raw, 0))
		}, false, "longer than the "},
		"longer chunked": {func(w http.ResponseWriter, raw []byte) {
			_, _ = w.Write(raw)
			w.(http.Flusher).Flush()
			_, _ = w.Write([]byte("more"))
		}, false, "longer than the "},
		"gone": {func(w http.ResponseWriter, raw []byte) {
			w.WriteHeader(http.StatusNotFound)
		}, false, "404"},
	} {
		t.Run(name, func(t *testing.T) {
			layer := layerServer(t, func(w http.ResponseWriter, _ *http.Request, raw []byte) { c.serve(w, raw) })
			_, err := readLayer(t.Context(), layer)
			requireFailure(t, err, c.temporary, c.want)
			must.StrHasPrefix(t, "read layer "+layer.Digest+" of image 127.0.0.1:", err.Error())
		})
	}
}

func TestStallingBlob(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	layer := layerServer(t, func(w http.ResponseWriter, r *http.Request, raw []byte) {
		_, _ = w.Write(raw[:10])
		w.(http.Flusher).Flush()
		<-r.Context().Done()
	})
	r, err := layer.Open(ctx)
	must.NoError(t, err)
	defer r.Close()
	_, err = io.ReadFull(r, make([]byte, 10))
	must.NoError(t, err)
	cancel()
	_, err = io.ReadAll(r)
	must.ErrorIs(t, err, context.Canceled)
	must.False(t, errors.Is(err, ErrTemporary))
}

// manifestOf returns the manifest of an image, so that a test can change it.
func manifestOf(t *testing.T, image v1.Image) *v1.Manifest {
	t.Helper()
	m, err := image.Manifest()
	must.NoError(t, err)
	return m
}

func marshal(t *testing.T, what any) string {
	t.Helper()
	raw, err := json.Marshal(what)
	must.NoError(t, err)
	return string(raw)
}

func TestBadManifests(t *testing.T) {
	s := newServer(t, nil)
	image := newImage(t, "linux/amd64", newLayer(t, "one"))
	s.push(t, "app:good", image)
	withLayer := func(mediaType types.MediaType) string {
		m := manifestOf(t, image)
		m.Layers[0].MediaType = mediaType
		return marshal(t, m)
	}
	withConfig := func(change func(*v1.Manifest)) string {
		m := manifestOf(t, image)
		change(m)
		return marshal(t, m)
	}
	for want, text := range map[string]string{
		"manifest of schema version 1 is not supported":                            `{"schemaVersion":1,"name":"a"}`,
		"manifest is not clearly an index or an image":                             `{"schemaVersion":2}`,
		"manifest is not clearly":                                                  `{"schemaVersion":2,"manifests":[],"layers":[]}`,
		`unexpected media type "application/x"`:                                    `{"schemaVersion":2,"manifests":[],"mediaType":"application/x"}`,
		"parse manifest":                                                           `{"schemaVersion":"2"}`,
		"parse manifest: cannot parse hash":                                        `{"schemaVersion":2,"config":{"digest":"x"}}`,
		"no image for platform linux/amd64, nor for any other":                     `{"schemaVersion":2,"manifests":[]}`,
		`is foreign (media type "application/vnd.docker.image.rootfs.foreign`:      withLayer(types.DockerForeignLayer),
		`is foreign (media type "application/vnd.oci.image.layer.nondistribut`:     withLayer(types.OCIRestrictedLayer),
		`has unknown media type "application/vnd.example.layer"`:                   withLayer("application/vnd.example.layer"),
		`artifact with config of media type "application/vnd.cncf.helm.config"`:    withConfig(func(m *v1.Manifest) { m.Config.MediaType = "application/vnd.cncf.helm.config" }),
		`artifact with config of media type "application/vnd.oci.empty.v1+json"`:   withConfig(func(m *v1.Manifest) { m.Config.MediaType = "application/vnd.oci.empty.v1+json" }),
		`artifact with config of media type "application/vnd.wasm.config.v0+json"`: withConfig(func(m *v1.Manifest) { m.Config.MediaType = "application/vnd.wasm.config.v0+json" }),
		"manifest is not clearly an index or an image ":                            `{"schemaVersion":2,"artifactType":"application/vnd.example.sbom","layers":[]}`,
		"only 2: push the image with a newer tool":                                 `{"schemaVersion":1,"name":"a","tag":"1","architecture":"amd64","fsLayers":[{"blobSum":"` + someDigest + `"}],"history":[],"signatures":[]}`,
		"no image for platform linux/amd64, nor for any other ":                    `{"schemaVersion":2,"manifests":[{"digest":"` + someDigest + `","platform":{"os":"unknown","architecture":"unknown"}}]}`,
		"no image for platform linux/amd64, only for windows/amd64":                `{"schemaVersion":2,"manifests":[{"digest":"` + someDigest + `","platform":{"os":"windows","architecture":"amd64"}}]}`,
		"has no digest": strings.Replace(withLayer(types.OCILayer), `"digest":"`+manifestOf(t, image).Layers[0].Digest.String()+`"`, `"nothing":""`, 1),
		"image has 501 layers, more than the 500":      withConfig(func(m *v1.Manifest) { m.Layers = slices.Repeat(m.Layers, 501) }),
		"config has 1 diff IDs for 0 layers":           withConfig(func(m *v1.Manifest) { m.Layers = nil }),
		"has size -1":                                  withConfig(func(m *v1.Manifest) { m.Layers[0].Size = -1 }),
		"of 99999999 bytes: larger than 4194304 bytes": withConfig(func(m *v1.Manifest) { m.Config.Size = 99999999 }),
		"longer than the 3 bytes":                      withConfig(func(m *v1.Manifest) { m.Config.Size = 3 }),
	} {
		s.push(t, "app:bad", rawManifest{types.OCIManifestSchema1, text})
		_, err := client(s).Resolve(t.Context(), s.ref(t, "app:bad"), nil, false)
		requireFailure(t, err, false, strings.TrimSpace(want))
	}
}

func TestNestedTooDeep(t *testing.T) {
	s := newServer(t, nil)
	index := newIndex(t, map[string]v1.Image{"linux/amd64": newImage(t, "linux/amd64")})
	for range maxDepth {
		index = mutate.AppendManifests(newIndex(t, nil), mutate.IndexAddendum{Add: index})
	}
	s.push(t, "app:1", index)
	_, err := client(s).Resolve(t.Context(), s.ref(t, "app:1"), nil, false)
	requireFailure(t, err, false, "indexes are nested deeper than 4")
}

func TestLargeDocuments(t *testing.T) {
	large := strings.Repeat(" ", maxDocument+1)
	for _, part := range []string{"/manifests/", "/v2/"} {
		s := newServer(t, answer(part, http.StatusOK, nil, large))
		_, err := client(s).Resolve(t.Context(), s.ref(t, "app:1"), nil, false)
		must.Error(t, err)
		requireFailure(t, err, false, "larger than 4194304 bytes")
	}
}

// If an image is pulled by digest, a manifest with another digest is refused.
func TestWrongManifest(t *testing.T) {
	s := newServer(t, answer("/manifests/", http.StatusOK, http.Header{"Content-Type": {string(types.OCIManifestSchema1)}}, "{}"))
	_, err := client(s).Resolve(t.Context(), s.ref(t, "app@"+someDigest), nil, false)
	requireFailure(t, err, false, "does not match requested digest")
}
