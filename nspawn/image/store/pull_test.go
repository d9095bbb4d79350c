package store

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"
)

func TestLayer(t *testing.T) {
	s, a := newStore(t), digest("a")
	p := s.Begin()
	defer p.Close()
	path, err := p.Layer(t.Context(), a, fillTree(a))
	must.NoError(t, err)
	must.NoError(t, checkTree(path, a))
	must.Eq(t, filepath.Join(s.Dir, "layers/sha256-"+a[len("sha256:"):], "tree"), path)
	must.Eq(t, []string{path}, s.Trees(imageOfLayers("image", "a")))
	must.SliceEmpty(t, contents(t, s, "tmp"))
	info, err := os.Stat(path)
	must.NoError(t, err)
	must.Eq(t, 0o755, info.Mode().Perm())
	info, err = os.Stat(s.Dir)
	must.NoError(t, err)
	must.Eq(t, 0o700, info.Mode().Perm())

	q := Store{Dir: s.Dir}.Begin()
	defer q.Close()
	again, err := q.Layer(t.Context(), a, nil)
	must.NoError(t, err)
	must.Eq(t, path, again)
}

func TestDisk(t *testing.T) {
	s, d := newStore(t), digest("disk")
	p := s.Begin()
	defer p.Close()
	path, err := p.Disk(t.Context(), d, func(_ context.Context, file *os.File) error {
		if err := file.Truncate(1 << 30); err != nil {
			return err
		}
		_, err := file.WriteAt([]byte("boot"), 0)
		return err
	})
	must.NoError(t, err)
	image := Image{Digest: digest("image"), Disk: d}
	must.Eq(t, path, s.DiskFile(image))
	must.NoError(t, p.Add(t.Context(), image, "disk"))
	listing, err := s.List(t.Context())
	must.NoError(t, err)
	must.Between(t, 4, listing.Bytes, 1<<20) // sparse
	must.Eq(t, listing.Bytes, listing.Images[0].Bytes)
}

func TestDigestIsChecked(t *testing.T) {
	s := newStore(t)
	p := s.Begin()
	defer p.Close()
	for _, bad := range []string{
		"", "sha256:", "sha256:../../etc", digest("a")[7:], "sha512:" + digest("a")[7:], digest("a") + "0",
		strings.ToUpper(digest("a")), digest("a") + "\n", "sha256:" + strings.Repeat("/", 64),
	} {
		_, err := p.Layer(t.Context(), bad, nil)
		must.ErrorContains(t, err, "64 hexadecimal digits")
		_, err = p.Disk(t.Context(), bad, nil)
		must.ErrorContains(t, err, "64 hexadecimal digits")
		_, err = s.Acquire(t.Context(), "web", bad)
		must.ErrorContains(t, err, "64 hexadecimal digits")
	}
	for _, folder := range []string{"layers", "disks", "refs", "tmp"} {
		must.SliceEmpty(t, contents(t, s, folder))
	}
}

func TestAddRefuses(t *testing.T) {
	s, a := newStore(t), digest("a")
	p := s.Begin()
	_, err := p.Layer(t.Context(), a, fillTree(a))
	must.NoError(t, err)
	good := imageOfLayers("image", "a")
	for want, image := range map[string]Image{
		"is not of this pull":            imageOfLayers("image", "a", "b"),
		"either layers or a disk":        {Digest: good.Digest},
		"64 hexadecimal digits":          {Digest: "x", Layers: good.Layers},
		"unexpected end of JSON input":   {Digest: good.Digest, Layers: good.Layers, Config: []byte("{")},
		"of disks is not of this pull":   {Digest: good.Digest, Disk: a},
		"has either layers or a disk":    {Digest: good.Digest, Layers: good.Layers, Disk: a},
		digest("b") + " of layers is no": imageOfLayers("image", "b"),
	} {
		must.ErrorContains(t, p.Add(t.Context(), image, "name"), want)
	}
	must.ErrorContains(t, p.Add(t.Context(), good, ""), "it has no name")
	must.SliceEmpty(t, contents(t, s, "images"))
	p.Close()
	must.ErrorContains(t, p.Add(t.Context(), good, "name"), "is not of this pull")
}

// TestLayerOnce lets many ask at once, each as a process of its own would: by
// another open file. None waits for the rest of another's pull.
func TestLayerOnce(t *testing.T) {
	s, a := newStore(t), digest("a")
	var fills atomic.Int32
	var all, asked, done sync.WaitGroup
	asked.Add(50)
	done.Add(50)
	for range 50 {
		all.Go(func() {
			p := s.Begin()
			defer p.Close()
			asked.Done()
			path, err := p.Layer(t.Context(), a, func(ctx context.Context, dir string) error {
				fills.Add(1)
				asked.Wait()
				return fillTree(a)(ctx, dir)
			})
			if err == nil {
				err = checkTree(path, a)
			}
			if err != nil {
				t.Error(err)
			}
			done.Done()
			done.Wait()
		})
	}
	all.Wait()
	must.Eq(t, 1, fills.Load())
	must.SliceEmpty(t, contents(t, s, "tmp"))
}

// TestLayerFails lets all that ask fail, each in its turn and by itself.
func TestLayerFails(t *testing.T) {
	s, a := newStore(t), digest("a")
	var all sync.WaitGroup
	var filling atomic.Int32
	for range 20 {
		all.Go(func() {
			own := errors.New("own")
			p := s.Begin()
			defer p.Close()
			_, err := p.Layer(t.Context(), a, func(ctx context.Context, dir string) error {
				if filling.Add(1) != 1 {
					t.Error("two fill at once")
				}
				defer filling.Add(-1)
				if found, err := list(dir); err != nil || len(found) > 0 {
					t.Error("directory to fill has", found, err)
				}
				return errors.Join(fillTree("half")(ctx, dir), own)
			})
			if !errors.Is(err, own) || !strings.Contains(err.Error(), "get layer "+a) {
				t.Error("error of another:", err)
			}
		})
	}
	all.Wait()
	must.SliceEmpty(t, contents(t, s, "tmp"))
	must.SliceEmpty(t, contents(t, s, "layers"))
}

// TestLayerWaitEnds gives up waiting while another fills. That must not be in the
// way of those who come later.
func TestLayerWaitEnds(t *testing.T) {
	s, a := newStore(t), digest("a")
	filling, fail, failed := make(chan struct{}), make(chan struct{}), make(chan error)
	go func() {
		p := s.Begin()
		defer p.Close()
		_, err := p.Layer(t.Context(), a, func(context.Context, string) error {
			close(filling)
			<-fail
			return errors.New("no network")
		})
		failed <- err
	}()
	<-filling
	p := s.Begin()
	defer p.Close()
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("task was stopped")
	cancel(why)
	_, err := p.Layer(ctx, a, fillTree("never"))
	must.ErrorIs(t, err, why)
	must.ErrorContains(t, err, "get layer "+a+": lock ")
	b := digest("b") // Other layers do not wait.
	_, err = p.Layer(t.Context(), b, fillTree(b))
	must.NoError(t, err)
	close(fail)
	must.ErrorContains(t, <-failed, "no network")
	path, err := p.Layer(t.Context(), a, fillTree(a))
	must.NoError(t, err)
	must.NoError(t, checkTree(path, a))
	must.SliceEmpty(t, contents(t, s, "tmp"))
}

// TestLayerCompletedMeanwhile is in the one moment that TestLayerOnce hardly ever
// meets: another completes the layer after we saw that it is missing, and before
// we have a directory to write it in.
func TestLayerCompletedMeanwhile(t *testing.T) {
	s := newStore(t)
	image := imageOfLayers("image", "a")
	mustPull(t, s, image, "name")
	it := item{layers, digest("a")}
	dir, err := s.workspace(t.Context(), it)
	must.NoError(t, err)
	p := s.Begin()
	defer p.Close()
	must.NoError(t, p.complete(t.Context(), it, dir, nil))
	must.NoError(t, p.Add(t.Context(), image, "again"))
	must.SliceEmpty(t, contents(t, s, "tmp"))
}

// TestLockWaitEnds gives up waiting for the store, and leaves no lock behind.
func TestLockWaitEnds(t *testing.T) {
	s, image := newStore(t), imageOfLayers("image", "a")
	mustPull(t, s, image, "name")
	dir, err := openLocked(t.Context(), s.Dir, unix.LOCK_EX)
	must.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = s.Acquire(ctx, "web", image.Digest)
	must.ErrorIs(t, err, context.Canceled)
	must.ErrorContains(t, err, "for machine web: lock "+s.Dir)
	must.NoError(t, dir.Close())
	for range 100 { // The one who gave up gets it at one of them.
		mustAcquire(t, s, "web", image.Digest)
	}
}
