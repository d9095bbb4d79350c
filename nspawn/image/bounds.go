package image

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/semaphore"
	"golang.org/x/sys/unix"

	"nomad-driver-nspawn/nspawn/image/layer"
)

// Bounds of what pulls take of the host, all of them together.
const (
	// maxUnpacking is how many streams are decompressed at once: at most 512 MiB of
	// windows. Nothing waits for the network meanwhile: it is fetched before.
	maxUnpacking = 32

	// maxLarge is how many of the streams that need a large window are, at most another
	// 512 MiB. They wait for each other only. Hardly an image has such streams.
	maxLarge = 4

	// maxPerServer is how many layers and files are fetched at once from one server.
	// Other servers do not count, so a slow one is in nobody's way but its own.
	maxPerServer = 32

	// parallelLayers is how many layers of an image are fetched at once, as docker
	// does (dockerd(8), --max-concurrent-downloads).
	parallelLayers = 3
)

// Limits of what one layer, tarball or disk may hold, against bombs.
const (
	maxBytes   = 256 << 30
	maxEntries = 10_000_000
)

var (
	ordinary = semaphore.NewWeighted(maxUnpacking)
	large    = semaphore.NewWeighted(maxLarge)
)

// unpacking does work that decompresses a stream, with the window it may use: first
// with an ordinary one, and once more, from the beginning, if that was too small.
func unpacking(ctx context.Context, work func(window int64) error) error {
	err := within(ctx, ordinary, func() error { return work(layer.Window) })
	if errors.Is(err, layer.ErrWindow) {
		err = within(ctx, large, func() error { return work(layer.LargeWindow) })
	}
	return err
}

func within(ctx context.Context, places *semaphore.Weighted, work func() error) error {
	if err := places.Acquire(ctx, 1); err != nil {
		return context.Cause(ctx)
	}
	defer places.Release(1)
	return work()
}

// servers are those that something is fetched from.
var servers = serverList{places: map[string]*serverPlaces{}}

type serverList struct {
	mu     sync.Mutex
	places map[string]*serverPlaces // by host[:port]
}

type serverPlaces struct {
	*semaphore.Weighted
	users int // that fetch or wait to
}

// fetching does work that fetches something from a server.
func (l *serverList) fetching(ctx context.Context, server string, work func() error) error {
	l.mu.Lock()
	s := l.places[server]
	if s == nil {
		s = &serverPlaces{Weighted: semaphore.NewWeighted(maxPerServer)}
		l.places[server] = s
	}
	s.users++
	l.mu.Unlock()
	defer func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		if s.users--; s.users == 0 {
			delete(l.places, server)
		}
	}()
	return within(ctx, s.Weighted, work)
}

// room is how much a pull may write: it leaves a part of the file system free, and
// keeps the store below its maximum. It is an io.Writer that counts what is written
// elsewhere. Several layers may use it at once.
type room struct {
	dir     string
	reserve int64 // bytes that have to stay free
	written atomic.Int64
}

const (
	// freePart is the part of the store's file system that pulls leave free, of its
	// bytes and of its inodes: 1/20.
	freePart = 20

	// lookPeriod is after how many bytes the file system is looked at.
	lookPeriod = 16 << 20
)

// room returns what a pull may write now.
func (p Puller) room(ctx context.Context) (*room, error) {
	var fs unix.Statfs_t
	if err := unix.Statfs(p.Store.Dir, &fs); err != nil {
		return nil, fmt.Errorf("look at the file system of %s: %w", p.Store.Dir, err)
	}
	r := &room{dir: p.Store.Dir, reserve: int64(fs.Blocks) * fs.Bsize / freePart}
	if p.MaxBytes > 0 {
		list, err := p.Store.List(ctx)
		if err != nil {
			return nil, err
		}
		left := p.MaxBytes - list.Bytes
		if left <= 0 {
			return nil, fmt.Errorf("the image store %s has %d bytes, and its limit is %d (image_gc.max_size): %w", p.Store.Dir, list.Bytes, p.MaxBytes, unix.ENOSPC)
		}
		r.reserve = max(r.reserve, int64(fs.Bavail)*fs.Bsize-left)
	}
	return r, r.look()
}

// look fails if the file system is too full.
func (r *room) look() error {
	var fs unix.Statfs_t
	if err := unix.Statfs(r.dir, &fs); err != nil {
		return fmt.Errorf("look at the file system of %s: %w", r.dir, err)
	}
	free := int64(fs.Bavail) * fs.Bsize
	switch {
	case free < r.reserve:
		return fmt.Errorf("the file system of the image store %s has %d bytes left, but %d have to stay free (a %dth of it, and what is above image_gc.max_size): %w",
			r.dir, free, r.reserve, freePart, unix.ENOSPC)
	case fs.Files > 0 && fs.Ffree < fs.Files/freePart: // btrfs has no number
		return fmt.Errorf("the file system of the image store %s has %d inodes left, but a %dth of them has to stay free: %w", r.dir, fs.Ffree, freePart, unix.ENOSPC)
	}
	return nil
}

func (r *room) Write(p []byte) (int, error) {
	now := r.written.Add(int64(len(p)))
	if now/lookPeriod != (now-int64(len(p)))/lookPeriod {
		if err := r.look(); err != nil {
			return 0, err
		}
	}
	return len(p), nil
}
