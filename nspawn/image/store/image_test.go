package store

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/shoenig/test/must"
)

func TestLookup(t *testing.T) {
	s := newStore(t)
	url := "https://example.com/" + strings.Repeat("very/", 100) + "long.tar.gz?x=1"
	_, _, err := s.Lookup(url)
	must.ErrorIs(t, err, ErrNotFound)
	image := imageOfLayers("image", "top", "base")
	image.Config = []byte(`{"config": {"Cmd": ["sh", "-c", "a < b"]}}`)
	before := time.Now()
	mustPull(t, s, image, url)
	mustPull(t, s, image, "docker.io/library/alpine:3")

	s = Store{Dir: s.Dir} // as after a restart
	for _, name := range []string{url, "docker.io/library/alpine:3"} {
		found, resolved, err := s.Lookup(name)
		must.NoError(t, err)
		must.Between(t, 0, resolved.Sub(before), time.Since(before))
		must.Eq(t, image.Layers, found.Layers)
		must.EqJSON(t, string(image.Config), string(found.Config))
	}
	_, _, err = s.Lookup("docker.io/library/alpine")
	must.ErrorIs(t, err, ErrNotFound)

	newer := imageOfLayers("newer", "top")
	mustPull(t, s, newer, "docker.io/library/alpine:3")
	found, _, err := s.Lookup("docker.io/library/alpine:3")
	must.NoError(t, err)
	must.Eq(t, newer, found)
}

func TestAcquireAndRelease(t *testing.T) {
	s := newStore(t)
	one, two := imageOfLayers("one", "a"), imageOfLayers("two", "b")
	_, err := s.Acquire(t.Context(), "web", one.Digest)
	must.ErrorIs(t, err, ErrNotFound)
	must.NoError(t, s.Release(t.Context(), "web"))
	mustPull(t, s, one, "one")
	mustPull(t, s, two, "two")
	found, err := s.Acquire(t.Context(), "web", one.Digest)
	must.NoError(t, err)
	must.Eq(t, one, found)
	mustAcquire(t, s, "db", one.Digest)
	mustAcquire(t, s, "web", one.Digest)
	must.Eq(t, map[string][]string{"one": {"db", "web"}, "two": nil}, machines(t, Store{Dir: s.Dir}))
	mustAcquire(t, s, "web", two.Digest) // instead of the other one
	must.Eq(t, map[string][]string{"one": {"db"}, "two": {"web"}}, machines(t, s))
	must.NoError(t, s.Release(t.Context(), "db"))
	must.Eq(t, map[string][]string{"one": nil, "two": {"web"}}, machines(t, s))

	for _, bad := range []string{"", ".", "..", "a/b", "../images/x", "a.b", strings.Repeat("a", 65)} {
		_, err := s.Acquire(t.Context(), bad, one.Digest)
		must.ErrorContains(t, err, "machine name")
		must.ErrorContains(t, s.Release(t.Context(), bad), "machine name")
	}
}

// machines returns the machines in List, by the name of the image.
func machines(t *testing.T, s Store) map[string][]string {
	t.Helper()
	listing, err := s.List(t.Context())
	must.NoError(t, err)
	found := map[string][]string{}
	for _, image := range listing.Images {
		must.NoError(t, image.Err)
		for _, name := range image.Names {
			found[name] = image.Machines
		}
	}
	return found
}

func TestLastUse(t *testing.T) {
	s, image := newStore(t), imageOfLayers("image", "a")
	for name, use := range map[string]func(){
		"add":     func() { mustPull(t, s, image, "name") },
		"again":   func() { mustPull(t, s, image, "name") },
		"acquire": func() { mustAcquire(t, s, "web", image.Digest) },
		"release": func() { must.NoError(t, s.Release(t.Context(), "web")) },
	} {
		t.Run(name, func(t *testing.T) {
			mustPull(t, s, image, "name")
			mustAcquire(t, s, "web", image.Digest)
			long := time.Now().Add(-time.Hour)
			must.NoError(t, os.Chtimes(s.imagePath(image.Digest), long, long))
			use()
			listing, err := s.List(t.Context())
			must.NoError(t, err)
			must.Between(t, 0, time.Since(listing.Images[0].LastUse), 10*time.Minute)
		})
	}
}

func TestListShares(t *testing.T) {
	s := newStore(t)
	mustPull(t, s, imageOfLayers("one", "top", "base", "top"), "b")
	mustPull(t, s, imageOfLayers("two", "base"), "c")
	mustPull(t, s, imageOfLayers("one", "top", "base", "top"), "a")
	listing, err := s.List(t.Context())
	must.NoError(t, err)
	must.SliceLen(t, 2, listing.Images)
	byName := map[string]Usage{}
	for _, image := range listing.Images {
		byName[image.Names[0]] = image
	}
	must.Eq(t, []string{"a", "b"}, byName["a"].Names)
	must.Eq(t, listing.Bytes, byName["a"].Bytes)
	must.Positive(t, byName["c"].Bytes)
	must.Eq(t, listing.Bytes, 2*byName["c"].Bytes)
}

func TestSize(t *testing.T) {
	s, a := newStore(t), digest("a")
	mustPull(t, s, imageOfLayers("image", "a"), "name")
	dir := s.path(item{layers, a})
	recorded, err := readSize(dir)
	must.NoError(t, err)
	must.NoError(t, os.WriteFile(filepath.Join(dir, sizeFile), []byte("many"), 0o600))
	measured, err := readSize(dir)
	must.NoError(t, err)
	must.Between(t, recorded, measured, recorded+8192) // the size file itself is included
	must.NoError(t, os.Link(filepath.Join(dir, "tree/0"), filepath.Join(dir, "tree/link")))
	linked, err := readSize(dir)
	must.NoError(t, err)
	must.Eq(t, measured, linked)
}

// TestDamaged damages one image of two, in several ways.
func TestDamaged(t *testing.T) {
	write := func(text string) func(*testing.T, string) {
		return func(t *testing.T, path string) { must.NoError(t, os.WriteFile(path, []byte(text), 0o600)) }
	}
	for want, damage := range map[string]func(t *testing.T, path string){
		"unexpected end of JSON input":          write(""),
		"invalid character":                     write("\x00\x00"),
		"an image has either layers":            write("{}"),
		"64 hexadecimal digits":                 write(`{"digest": "` + digest("bad") + `", "layers": ["../../../etc"]}`),
		"it belongs to image " + digest("good"): write(`{"digest": "` + digest("good") + `", "layers": ["` + digest("a") + `"]}`),
		"lacks ": func(t *testing.T, path string) {
			must.NoError(t, os.RemoveAll(filepath.Join(path, "../../layers", fileName(digest("b")))))
		},
	} {
		t.Run(want, func(t *testing.T) {
			s := newStore(t)
			good, bad := imageOfLayers("good", "a"), imageOfLayers("bad", "b")
			mustPull(t, s, good, "good")
			mustPull(t, s, bad, "bad")
			damage(t, s.imagePath(bad.Digest))

			_, _, err := s.Lookup("bad")
			must.ErrorIs(t, err, ErrNotFound)
			must.ErrorContains(t, err, want)
			_, err = s.Acquire(t.Context(), "web", bad.Digest)
			must.ErrorIs(t, err, ErrNotFound)
			_, _, err = s.Lookup("good")
			must.NoError(t, err)
			mustAcquire(t, s, "web", good.Digest)
			listing, err := s.List(t.Context())
			must.NoError(t, err)
			must.SliceLen(t, 2, listing.Images)

			removed, err := s.Collect(t.Context(), CollectOptions{})
			must.NoError(t, err)
			must.SliceLen(t, 1, removed)
			must.Eq(t, bad.Digest, removed[0].Digest)
			must.ErrorContains(t, removed[0].Err, want)

			mustPull(t, s, bad, "bad")
			mustAcquire(t, s, "web", bad.Digest)
		})
	}
}

// TestDamagedInUse repairs an image that cannot be read any more, while a machine runs
// from it.
func TestDamagedInUse(t *testing.T) {
	for name, damage := range map[string]func(s Store, image Image) error{
		"content":   func(s Store, image Image) error { return os.Truncate(s.imagePath(image.Digest), 10) },
		"missing":   func(s Store, image Image) error { return os.Remove(s.imagePath(image.Digest)) },
		"reference": func(s Store, _ Image) error { return os.WriteFile(s.refPath("odd"), nil, 0o600) },
	} {
		t.Run(name, func(t *testing.T) {
			s, image := newStore(t), imageOfLayers("image", "a")
			mustPull(t, s, image, "name")
			mustPull(t, s, imageOfLayers("unused", "b"), "unused")
			mustAcquire(t, s, "web", image.Digest)
			must.NoError(t, damage(s, image))
			for range 2 {
				removed, err := s.Collect(t.Context(), CollectOptions{UnusedFor: 1})
				must.ErrorContains(t, err, "about which nothing is known")
				must.SliceEmpty(t, removed)
				must.SliceLen(t, 2, contents(t, s, "layers"))
			}
			_, err := s.List(t.Context())
			must.NoError(t, err)

			mustPull(t, s, image, "name")
			must.NoError(t, s.Release(t.Context(), "odd"))
			removed, err := s.Collect(t.Context(), CollectOptions{UnusedFor: 1})
			must.NoError(t, err)
			must.SliceLen(t, 1, removed)
			must.SliceLen(t, 1, contents(t, s, "layers"))
			must.NoError(t, s.Release(t.Context(), "web"))
			checkEmpties(t, s)
		})
	}
}
