package store

import (
	"errors"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/shoenig/test/must"
)

// TestChoose makes decisions for an inventory. Images are given as NAME:LAYERS, with the
// hours since they were used, and each layer has 10 bytes.
func TestChoose(t *testing.T) {
	now := time.Now()
	three := map[string]int{"old:ab": 3, "mid:b": 2, "new:c": 1}
	for name, test := range map[string]struct {
		images                          map[string]int // hours since use
		inUse, pulled, damaged, orphans []string
		options                         CollectOptions
		want                            []string // in this order
	}{
		"nothing":            {images: three},
		"orphans":            {images: three, orphans: []string{"x"}, want: []string{"x"}},
		"orphan pulled":      {images: three, orphans: []string{"x"}, pulled: []string{"x"}},
		"age":                {images: three, options: CollectOptions{UnusedFor: 90 * time.Minute}, want: []string{"old", "mid", "a", "b"}},
		"age, none":          {images: three, options: CollectOptions{UnusedFor: 4 * time.Hour}},
		"age, used":          {images: three, inUse: []string{"mid"}, options: CollectOptions{UnusedFor: 1}, want: []string{"old", "new", "a", "c"}},
		"age, pulled":        {images: three, pulled: []string{"mid"}, options: CollectOptions{UnusedFor: 1}, want: []string{"old", "new", "a", "c"}},
		"layer pulled":       {images: three, pulled: []string{"a"}, options: CollectOptions{UnusedFor: 1}, want: []string{"old", "mid", "new", "b", "c"}},
		"size, fits":         {images: three, options: CollectOptions{MaxBytes: 30}},
		"size":               {images: three, options: CollectOptions{MaxBytes: 29}, want: []string{"old", "a"}},
		"size, shared":       {images: three, options: CollectOptions{MaxBytes: 10}, want: []string{"old", "mid", "a", "b"}},
		"size, used":         {images: three, inUse: []string{"old"}, options: CollectOptions{MaxBytes: 1}, want: []string{"mid", "new", "c"}},
		"size after orphans": {images: three, orphans: []string{"x"}, options: CollectOptions{MaxBytes: 30}, want: []string{"x"}},
		"size with pulled":   {images: three, orphans: []string{"x"}, pulled: []string{"x"}, options: CollectOptions{MaxBytes: 30}, want: []string{"old", "a"}},
		"age, then size":     {images: three, options: CollectOptions{UnusedFor: 150 * time.Minute, MaxBytes: 10}, want: []string{"old", "mid", "a", "b"}},
		"damaged":            {images: three, damaged: []string{"new"}, want: []string{"new", "c"}},
		"damaged, used":      {images: three, damaged: []string{"new"}, inUse: []string{"new"}, options: CollectOptions{MaxBytes: 30}},
		"same layer twice":   {images: map[string]int{"one:aa": 1}, options: CollectOptions{UnusedFor: 1}, want: []string{"one", "a"}},
	} {
		t.Run(name, func(t *testing.T) {
			inv := inventory{images: map[string]*record{}, items: map[item]itemUsage{}}
			put := func(layer string) {
				inv.items[item{layers, layer}] = itemUsage{10, slices.Contains(test.pulled, layer)}
			}
			for spec, hours := range test.images {
				name, of, _ := strings.Cut(spec, ":")
				r := &record{image: Image{Layers: strings.Split(of, "")}, pulled: slices.Contains(test.pulled, name)}
				r.Usage = Usage{Digest: name, LastUse: now.Add(-time.Duration(hours) * time.Hour)}
				if slices.Contains(test.inUse, name) {
					r.Machines = []string{"web"}
				}
				if slices.Contains(test.damaged, name) {
					r.Err = errors.New("damaged")
				}
				inv.images[name] = r
				for _, layer := range r.image.Layers {
					put(layer)
				}
			}
			for _, layer := range test.orphans {
				put(layer)
			}
			victims, orphans := inv.choose(test.options, now)
			var got, gone []string
			for _, victim := range victims {
				got = append(got, victim.Digest)
			}
			for _, it := range orphans {
				gone = append(gone, it.digest)
			}
			slices.Sort(gone)
			must.Eq(t, test.want, append(got, gone...))
		})
	}
}

func TestCollect(t *testing.T) {
	s := newStore(t)
	one, two := imageOfLayers("one", "top", "base"), imageOfLayers("two", "base")
	mustPull(t, s, one, "one")
	mustPull(t, s, one, "also one")
	mustPull(t, s, two, "two")
	mustAcquire(t, s, "web", two.Digest)
	for _, image := range []Image{one, two} {
		long := time.Now().Add(-time.Hour)
		must.NoError(t, os.Chtimes(s.imagePath(image.Digest), long, long))
	}
	removed, err := s.Collect(t.Context(), CollectOptions{UnusedFor: 2 * time.Hour})
	must.NoError(t, err)
	must.SliceEmpty(t, removed)

	would, err := s.Collect(t.Context(), CollectOptions{UnusedFor: time.Minute, DryRun: true})
	must.NoError(t, err)
	must.Eq(t, []string{"also one", "one"}, would[0].Names)
	must.SliceLen(t, 2, contents(t, s, "images"))
	must.SliceLen(t, 3, contents(t, s, "names"))
	must.SliceLen(t, 2, contents(t, s, "layers"))

	removed, err = s.Collect(t.Context(), CollectOptions{UnusedFor: time.Minute})
	must.NoError(t, err)
	must.Eq(t, would, removed)
	must.Eq(t, map[string][]string{"two": {"web"}}, machines(t, s))
	must.SliceLen(t, 1, contents(t, s, "names"))
	must.NoError(t, checkTree(s.Trees(two)[0], digest("base")))
	must.SliceLen(t, 1, contents(t, s, "layers"))
	must.SliceEmpty(t, contents(t, s, "tmp"))
	must.NoError(t, s.Release(t.Context(), "web"))
	checkEmpties(t, s)
}

// TestCollectSparesPull goes through a pull step by step.
func TestCollectSparesPull(t *testing.T) {
	s, a, b := newStore(t), digest("a"), digest("b")
	collect := func() {
		t.Helper()
		_, err := s.Collect(t.Context(), CollectOptions{UnusedFor: 1, MaxBytes: 1})
		must.NoError(t, err)
	}
	mustPull(t, s, imageOfLayers("old", "a"), "old")
	p, other := s.Begin(), s.Begin()
	_, err := p.Layer(t.Context(), a, "here", nil) // the layer exists
	must.NoError(t, err)
	_, err = other.Layer(t.Context(), a, "here", nil)
	must.NoError(t, err)
	collect()
	other.Close()
	collect()
	must.SliceEmpty(t, contents(t, s, "images"))
	must.SliceLen(t, 1, contents(t, s, "layers"))
	_, err = p.Layer(t.Context(), b, "here", fillTree(b))
	must.NoError(t, err)
	collect()
	image := imageOfLayers("image", "a", "b")
	must.NoError(t, p.Add(t.Context(), image, "name"))
	collect()
	mustPull(t, s, image, "name") // another pull of the same image, which ends earlier
	collect()
	mustAcquire(t, s, "web", image.Digest)
	p.Close()
	collect()
	for i, tree := range s.Trees(image) {
		must.NoError(t, checkTree(tree, image.Layers[i]))
	}
	must.NoError(t, s.Release(t.Context(), "web"))

	abandoned := s.Begin()
	_, err = abandoned.Layer(t.Context(), digest("c"), "here", fillTree("c"))
	must.NoError(t, err)
	abandoned.Close()
	checkEmpties(t, s)
}

// TestNextUnused checks the time at which the next collection makes sense.
func TestNextUnused(t *testing.T) {
	s := newStore(t)
	next, err := s.NextUnused(t.Context(), time.Minute)
	must.NoError(t, err)
	must.True(t, next.IsZero())
	began := time.Now()
	for _, name := range []string{"a", "b", "c"} {
		mustPull(t, s, imageOfLayers(name, name), name)
	}
	old := began.Add(-30 * time.Second)
	must.NoError(t, os.Chtimes(s.imagePath(digest("b")), old, old))
	mustAcquire(t, s, "web", digest("a"))
	next, err = s.NextUnused(t.Context(), time.Minute)
	must.NoError(t, err)
	must.True(t, next.Equal(old.Add(time.Minute)))
	mustAcquire(t, s, "db", digest("b"))
	mustAcquire(t, s, "app", digest("c"))
	next, err = s.NextUnused(t.Context(), time.Minute)
	must.NoError(t, err)
	must.True(t, next.IsZero())
	must.NoError(t, s.Release(t.Context(), "web"))
	next, err = s.NextUnused(t.Context(), time.Minute)
	must.NoError(t, err)
	must.True(t, next.After(began.Add(time.Minute)))
	removed, err := s.Collect(t.Context(), CollectOptions{UnusedFor: time.Nanosecond})
	must.NoError(t, err)
	must.SliceLen(t, 1, removed)
}
