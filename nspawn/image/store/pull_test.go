package store

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"
)

func TestLayer(t *testing.T) {
	s, a := newStore(t), digest("a")
	p := s.Begin()
	defer p.Close()
	path, err := p.Layer(t.Context(), a, "here", fillTree(a))
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
	again, err := q.Layer(t.Context(), a, "here", nil)
	must.NoError(t, err)
	must.Eq(t, path, again)
}

func TestDisk(t *testing.T) {
	s, d := newStore(t), digest("disk")
	p := s.Begin()
	defer p.Close()
	path, err := p.Disk(t.Context(), d, "here", func(_ context.Context, file *os.File) error {
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
	must.Between(t, 4, listing.Bytes, 1<<20) // it is sparse
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
		_, err := p.Layer(t.Context(), bad, "here", nil)
		must.ErrorContains(t, err, "64 hexadecimal digits")
		_, err = p.Disk(t.Context(), bad, "here", nil)
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
	_, err := p.Layer(t.Context(), a, "here", fillTree(a))
	must.NoError(t, err)
	good := imageOfLayers("image", "a")
	for want, image := range map[string]Image{
		"was not obtained by this pull":             imageOfLayers("image", "a", "b"),
		"either layers or a disk":                   {Digest: good.Digest},
		"64 hexadecimal digits":                     {Digest: "x", Layers: good.Layers},
		"unexpected end of JSON input":              {Digest: good.Digest, Layers: good.Layers, Config: []byte("{")},
		"of disks was not obtained by this pull":    {Digest: good.Digest, Disk: a},
		"has either layers or a disk":               {Digest: good.Digest, Layers: good.Layers, Disk: a},
		digest("b") + " of layers was not obtained": imageOfLayers("image", "b"),
	} {
		must.ErrorContains(t, p.Add(t.Context(), image, "name"), want)
	}
	must.ErrorContains(t, p.Add(t.Context(), good, ""), "it has no name")
	must.SliceEmpty(t, contents(t, s, "images"))
	p.Close()
	must.ErrorContains(t, p.Add(t.Context(), good, "name"), "was not obtained by this pull")
}

// TestLayerOnce lets many pulls request a layer at the same time, each with an open file
// of its own, as in separate processes. None waits for the rest of another pull.
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
			path, err := p.Layer(t.Context(), a, "here", func(ctx context.Context, dir string) error {
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

// TestLayerOnceWhileOthersSweep makes a layer again and again while the leftovers of pulls
// are removed all the time: a workspace that was made a moment ago is none of them, and
// nobody takes it for given up.
func TestLayerOnceWhileOthersSweep(t *testing.T) {
	s := newStore(t)
	ctx, cancel := context.WithCancel(t.Context())
	var sweeping sync.WaitGroup
	defer sweeping.Wait()
	defer cancel()
	sweeping.Go(func() {
		for ctx.Err() == nil {
			if err := s.sweep(t.Context()); err != nil {
				t.Error(err)
			}
		}
	})
	for i := range 300 {
		layer := digest(fmt.Sprint(i))
		var fills atomic.Int32
		var all, asked sync.WaitGroup
		asked.Add(4)
		for range 4 {
			all.Go(func() {
				p := s.Begin()
				defer p.Close()
				asked.Done()
				_, err := p.Layer(t.Context(), layer, "here", func(ctx context.Context, dir string) error {
					fills.Add(1)
					asked.Wait()
					return fillTree(layer)(ctx, dir)
				})
				if err != nil {
					t.Error(err)
				}
			})
		}
		all.Wait()
		must.Eq(t, 1, fills.Load(), must.Sprintf("layer %d", i))
	}
}

// TestLayerFails lets the first of 20 pulls fail. Those that have waited for it do not
// wait again: they fill at the same time, each by itself, and only one of them must
// succeed.
func TestLayerFails(t *testing.T) {
	s, a := newStore(t), digest("a")
	var all sync.WaitGroup
	filling, fail := make(chan struct{}), make(chan struct{})
	own := errors.New("own")
	all.Go(func() {
		p := s.Begin()
		defer p.Close()
		_, err := p.Layer(t.Context(), a, "here", func(context.Context, string) error {
			close(filling)
			<-fail
			return own
		})
		if !errors.Is(err, own) || !strings.Contains(err.Error(), "get layer "+a) {
			t.Error("error of another:", err)
		}
	})
	<-filling
	var together sync.WaitGroup
	together.Add(19)
	var winner atomic.Bool
	for range 19 {
		all.Go(func() {
			p := s.Begin()
			defer p.Close()
			path, err := p.Layer(t.Context(), a, "here", func(ctx context.Context, dir string) error {
				if found, err := list(dir); err != nil || len(found) > 0 {
					t.Error("directory to fill has", found, err)
				}
				together.Done()
				together.Wait()
				if winner.CompareAndSwap(false, true) {
					return fillTree(a)(ctx, dir)
				}
				<-ctx.Done()
				return ctx.Err()
			})
			if err == nil {
				err = checkTree(path, a)
			}
			if err != nil {
				t.Error(err)
			}
		})
	}
	// All of them must be waiting for the first one before it fails.
	waitForLocks(t, s, 19)
	close(fail)
	all.Wait()
	must.SliceEmpty(t, contents(t, s, "tmp"))
}

// TestOriginsDoNotWait gets a layer from an origin that never finishes. A pull of the
// same layer from another origin does not wait for it, and ends the wait of all others:
// of the pull that fills, and of the pull that waits for that one.
func TestOriginsDoNotWait(t *testing.T) {
	s, a := newStore(t), digest("a")
	filling := make(chan struct{})
	var once sync.Once
	var slow sync.WaitGroup
	for range 2 {
		slow.Go(func() {
			p := s.Begin()
			defer p.Close()
			path, err := p.Layer(t.Context(), a, "slow", func(ctx context.Context, dir string) error {
				once.Do(func() { close(filling) })
				<-ctx.Done()
				return ctx.Err()
			})
			if err == nil {
				err = checkTree(path, a)
			}
			if err != nil {
				t.Error(err)
			}
		})
	}
	<-filling
	waitForLocks(t, s, 1)
	p := s.Begin()
	defer p.Close()
	_, err := p.Layer(t.Context(), a, "fast", fillTree(a))
	must.NoError(t, err)
	slow.Wait()
	must.SliceEmpty(t, contents(t, s, "tmp"))
	must.MapEmpty(t, arrivals.waiting)
}

// TestOriginFails lets a pull fail while another one of the same layer fills. The two are
// independent.
func TestOriginFails(t *testing.T) {
	s, a := newStore(t), digest("a")
	p := s.Begin()
	defer p.Close()
	_, err := p.Layer(t.Context(), a, "good", func(ctx context.Context, dir string) error {
		q := s.Begin()
		defer q.Close()
		_, err := q.Layer(ctx, a, "bad", func(context.Context, string) error { return errors.New("refused") })
		must.ErrorContains(t, err, "refused")
		return fillTree(a)(ctx, dir)
	})
	must.NoError(t, err)
}

// TestLateLayer fills a layer although another process was faster, without being
// notified.
func TestLateLayer(t *testing.T) {
	s, a := newStore(t), digest("a")
	p := s.Begin()
	defer p.Close()
	path, err := p.Layer(t.Context(), a, "late", func(ctx context.Context, dir string) error {
		other := startChild(t, s, "layer", "", nil)
		other.says(t, "asking")
		other.says(t, "filling")
		must.NoError(t, other.stdin.Close())
		other.says(t, "done: <nil>")
		return fillTree(a)(ctx, dir)
	})
	must.NoError(t, err)
	must.NoError(t, checkTree(path, a))
	must.NoError(t, p.Add(t.Context(), imageOfLayers("image", "a"), "name"))
	must.SliceEmpty(t, contents(t, s, "tmp"))
}

// waitForLocks waits until the given number of threads of this process wait for a lock in
// the store's tmp/ (proc_locks(5)).
func waitForLocks(t *testing.T, s Store, want int) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for {
		locks, err := os.ReadFile("/proc/locks")
		must.NoError(t, err)
		waiting := 0
		for _, line := range strings.Split(string(locks), "\n") {
			if strings.Contains(line, "-> FLOCK") && strings.Contains(line, fmt.Sprintf(" %d ", os.Getpid())) {
				waiting++
			}
		}
		if waiting >= want {
			return
		}
		must.True(t, time.Now().Before(deadline), must.Sprintf("%d wait, want %d:\n%s", waiting, want, locks))
		time.Sleep(time.Millisecond)
	}
}

// TestLayerWaitEnds cancels a wait while another pull fills. That must not block later
// pulls.
func TestLayerWaitEnds(t *testing.T) {
	s, a := newStore(t), digest("a")
	filling, fail, failed := make(chan struct{}), make(chan struct{}), make(chan error)
	go func() {
		p := s.Begin()
		defer p.Close()
		_, err := p.Layer(t.Context(), a, "here", func(context.Context, string) error {
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
	_, err := p.Layer(ctx, a, "here", fillTree("never"))
	must.ErrorIs(t, err, why)
	must.ErrorContains(t, err, "get layer "+a+": lock ")
	b := digest("b") // other layers do not wait
	_, err = p.Layer(t.Context(), b, "here", fillTree(b))
	must.NoError(t, err)
	close(fail)
	must.ErrorContains(t, <-failed, "no network")
	path, err := p.Layer(t.Context(), a, "here", fillTree(a))
	must.NoError(t, err)
	must.NoError(t, checkTree(path, a))
	must.SliceEmpty(t, contents(t, s, "tmp"))
}

// TestLayerCompletedMeanwhile tests a moment that TestLayerOnce hardly ever hits: another
// pull completes the layer after we have seen that it is missing, and before we have a
// directory to write it in.
func TestLayerCompletedMeanwhile(t *testing.T) {
	s := newStore(t)
	image := imageOfLayers("image", "a")
	mustPull(t, s, image, "name")
	it := item{layers, digest("a")}
	dir, err := s.workspace(t.Context(), it, "here")
	must.NoError(t, err)
	p := s.Begin()
	defer p.Close()
	must.NoError(t, p.complete(t.Context(), it, dir, nil))
	must.NoError(t, p.Add(t.Context(), image, "again"))
	must.SliceEmpty(t, contents(t, s, "tmp"))
}

// TestLockWaitEnds cancels a wait for the store, and checks that no lock remains.
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
	for range 100 { // the canceled wait gets the lock during one of these
		mustAcquire(t, s, "web", image.Digest)
	}
}
