package oci

import (
	"context"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"path"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/shoenig/test/must"
)

func newIndex(t *testing.T, images map[string]v1.Image) v1.ImageIndex {
	t.Helper()
	index := mutate.IndexMediaType(empty.Index, types.OCIImageIndex)
	for on, image := range images {
		index = mutate.AppendManifests(index, mutate.IndexAddendum{Add: image, Descriptor: v1.Descriptor{Platform: platform(t, on)}})
	}
	return index
}

func TestResolveTagAndDigest(t *testing.T) {
	s := newServer(t, nil)
	image := newImage(t, "linux/amd64", newLayer(t, "one"), newZstdLayer(t, "two"), newLayer(t, "one"))
	s.push(t, "team/app:1.2", image)
	requireSame(t, image, resolve(t, client(s), s.ref(t, "team/app:1.2")))
	digest, err := image.Digest()
	must.NoError(t, err)
	requireSame(t, image, resolve(t, client(s), s.ref(t, "team/app@"+digest.String())))
}

func TestResolveMultiArch(t *testing.T) {
	s := newServer(t, nil)
	images := map[string]v1.Image{
		"linux/amd64":    newImage(t, "linux/amd64", newLayer(t, "amd64")),
		"linux/arm64/v8": newImage(t, "linux/arm64/v8", newLayer(t, "arm64")),
		"linux/arm/v6":   newImage(t, "linux/arm/v6", newLayer(t, "v6")),
		"linux/arm/v7":   newImage(t, "linux/arm/v7", newLayer(t, "v7")),
	}
	index := newIndex(t, images)
	s.push(t, "app:1", index)
	s.push(t, "app:nested", mutate.AppendManifests(empty.Index, mutate.IndexAddendum{Add: index}))
	for on, want := range images {
		c := client(s)
		c.Platform = on
		requireSame(t, want, resolve(t, c, s.ref(t, "app:1")))
		requireSame(t, want, resolve(t, c, s.ref(t, "app:nested")))
	}
	c := client(s)
	c.Platform = "linux/s390x"
	_, err := c.Resolve(t.Context(), s.ref(t, "app:1"), nil, false)
	requireFailure(t, err, false, "no image for platform linux/s390x, only for linux/amd64, linux/arm/v6, linux/arm/v7, linux/arm64/v8")
}

func TestResolveSingleImageOfOtherPlatform(t *testing.T) {
	s := newServer(t, nil)
	s.push(t, "app:1", newImage(t, "linux/arm64"))
	_, err := client(s).Resolve(t.Context(), s.ref(t, "app:1"), nil, false)
	requireFailure(t, err, false, "no image for platform linux/amd64, only for linux/arm64")
}

func TestPlainHTTPOnlyWhereAllowed(t *testing.T) {
	s := newServer(t, nil)
	s.push(t, "app:1", newImage(t, "linux/amd64"))
	_, err := Client{}.Resolve(t.Context(), s.ref(t, "app:1"), nil, false)
	requireFailure(t, err, false, "refuse plain HTTP with "+s.host)
	must.Zero(t, s.seen("GET"))
	resolve(t, client(s), s.ref(t, "app:1"))
}

// A redirect must not lead from TLS to a connection that others can read.
func TestNoRedirectToPlainHTTP(t *testing.T) {
	plain := newServer(t, nil)
	secure := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.Contains(r.URL.Path, "/manifests/") {
			http.Redirect(w, r, plain.URL+r.URL.Path, http.StatusTemporaryRedirect)
		}
	}))
	defer secure.Close()
	ref, err := ParseReference(strings.TrimPrefix(secure.URL, "https://") + "/app")
	must.NoError(t, err)
	_, err = Client{CAFile: writeCA(t, secure)}.Resolve(t.Context(), ref, nil, false)
	requireFailure(t, err, false, "refuse plain HTTP with "+plain.host)
	must.Zero(t, plain.seen("GET"))
}

func TestTLS(t *testing.T) {
	s := &server{}
	s.Server = httptest.NewUnstartedServer(s.handler(nil))
	s.Config.ErrorLog = log.New(io.Discard, "", 0) // it would log clients that do not trust the certificate
	s.StartTLS()
	defer s.Close()
	s.host = strings.TrimPrefix(s.URL, "https://")
	image := newImage(t, "linux/amd64", newLayer(t, "one"))
	s.push(t, "app:1", image)
	requireSame(t, image, resolve(t, Client{Platform: "linux/amd64", CAFile: writeCA(t, s.Server)}, s.ref(t, "app:1")))

	_, err := Client{}.Resolve(t.Context(), s.ref(t, "app:1"), nil, false)
	requireFailure(t, err, false, "certificate signed by unknown authority")
	must.ErrorContains(t, err, "give the plugin its CA file")
	_, err = Client{CAFile: writeFile(t, "ca.pem", []byte("none"), 0o644)}.Resolve(t.Context(), s.ref(t, "app:1"), nil, false)
	requireFailure(t, err, false, "no certificate in")
}

func TestMirrors(t *testing.T) {
	image := newImage(t, "linux/amd64", newLayer(t, "one"))
	origin, good, lame := newServer(t, nil), newServer(t, nil), newServer(t, nil)
	origin.push(t, "app:1", image)
	origin.push(t, "app:2", newImage(t, "linux/amd64"))
	good.push(t, "proxy/app:1", image)
	dead := newServer(t, nil)
	dead.Close()

	c := client(origin, good, lame, dead)
	c.Mirrors = map[string][]string{origin.host: {dead.host, lame.host, good.host + "/proxy"}}
	requireSame(t, image, resolve(t, c, origin.ref(t, "app:1")))
	must.Eq(t, 1, lame.seen("app/manifests/1"))
	must.Eq(t, 0, origin.seen("GET /v2/app"))

	resolve(t, c, origin.ref(t, "app:2")) // only the registry has it

	_, err := c.Resolve(t.Context(), origin.ref(t, "app:3"), nil, false)
	requireFailure(t, err, false, "404") // the registry's answer counts, not that of the dead mirror
	must.ErrorContains(t, err, dead.host)
}

// A mirror that has the manifest but has lost the blob does not make the pull fail.
func TestMirrorWithoutBlob(t *testing.T) {
	layer := newLayer(t, "one")
	digest, err := layer.Digest()
	must.NoError(t, err)
	image := newImage(t, "linux/amd64", layer)
	origin := newServer(t, nil)
	mirror := newServer(t, func(w http.ResponseWriter, r *http.Request) bool {
		lost := strings.HasSuffix(r.URL.Path, "/blobs/"+digest.String())
		if lost {
			http.NotFound(w, r)
		}
		return lost
	})
	origin.push(t, "app:1", image)
	mirror.push(t, "app:1", image)
	c := client(origin, mirror)
	c.Mirrors = map[string][]string{origin.host: {mirror.host}}
	requireSame(t, image, resolve(t, c, origin.ref(t, "app:1")))
	must.Eq(t, 0, origin.seen("GET /v2/app/manifests"))
}

func TestMirrorMustBeHost(t *testing.T) {
	_, err := Client{Mirrors: map[string][]string{"docker.io": {"mirror"}}}.Resolve(t.Context(), Reference{Registry: "docker.io", Repository: "a", Tag: "b"}, nil, false)
	requireFailure(t, err, false, `use mirror "mirror": "mirror" is not a HOST[:PORT]`)
}

// A mirror does not receive the credentials of the task.
func TestMirrorGetsNoTaskAuth(t *testing.T) {
	mirror := newServer(t, func(w http.ResponseWriter, r *http.Request) bool {
		if r.Header.Get("Authorization") != "" {
			t.Error("mirror was given credentials")
		}
		return demandAuth("other", "other")(w, r)
	})
	origin := newServer(t, demandAuth("me", "hunter2"))
	origin.push(t, "app:1", newImage(t, "linux/amd64"))
	c := client(origin, mirror)
	c.Mirrors = map[string][]string{origin.host: {mirror.host}}
	_, err := c.Resolve(t.Context(), origin.ref(t, "app:1"), &Auth{"me", "hunter2"}, false)
	must.NoError(t, err)
	must.Positive(t, mirror.seen("GET"))
}

func TestUserAgent(t *testing.T) {
	agents := make(chan string, 100)
	s := newServer(t, func(_ http.ResponseWriter, r *http.Request) bool {
		agents <- r.UserAgent()
		return false
	})
	s.push(t, "app:1", newImage(t, "linux/amd64"))
	c := client(s)
	c.UserAgent = "nomad-driver-nspawn/1"
	resolve(t, c, s.ref(t, "app:1"))
	close(agents)
	for agent := range agents {
		must.StrHasPrefix(t, "nomad-driver-nspawn/1 ", agent)
	}
}

// All layers may be open at the same time, however many there are.
func TestManyLayersAtOnce(t *testing.T) {
	s := newServer(t, nil)
	var layers []v1.Layer
	for i := range 12 {
		layers = append(layers, newLayer(t, fmt.Sprint(i)))
	}
	s.push(t, "app:1", newImage(t, "linux/amd64", layers...))
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for _, layer := range resolve(t, client(s), s.ref(t, "app:1")).Layers {
		r, err := layer.Open(ctx)
		must.NoError(t, err)
		defer r.Close()
	}
}

// Registries keep blobs on other servers. The size of a blob is not limited like that of
// a document.
func TestRedirectedBlob(t *testing.T) {
	noise := make([]byte, maxDocument+1) // it cannot be compressed
	_, _ = rand.NewChaCha8([32]byte{}).Read(noise)
	image := newImage(t, "linux/amd64", newLayer(t, string(noise)))
	elsewhere := newServer(t, func(_ http.ResponseWriter, r *http.Request) bool {
		r.URL.Path = strings.Replace(r.URL.Path, "/storage/", "/v2/app/blobs/", 1)
		return false
	})
	elsewhere.push(t, "app:1", image)
	s := newServer(t, func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.Contains(r.URL.Path, "/blobs/") {
			return false
		}
		http.Redirect(w, r, elsewhere.URL+"/storage/"+path.Base(r.URL.Path), http.StatusTemporaryRedirect)
		return true
	})
	s.push(t, "app:1", image)
	requireSame(t, image, resolve(t, client(s, elsewhere), s.ref(t, "app:1")))
	must.Positive(t, elsewhere.seen("/storage/"))
}
