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

// Limits of what all pulls together use on the host.
const (
	// maxUnpacking is the number of streams that are decompressed at the same time; their
	// windows take at most 512 MiB. None of them waits for the network, because files are
	// fetched before they are decompressed.
	maxUnpacking = 32

	// maxLarge is the number of streams with a large window that are decompressed at the
	// same time; they take at most another 512 MiB. They wait only for each other. Few
	// images have such streams.
	maxLarge = 4

	// maxPerServer is the number of layers and files that are fetched from one server at
	// the same time. The limit is per server, so a slow server delays only its own
	// images.
	maxPerServer = 32

	// parallelLayers is the number of layers of one image that are fetched at the same
	// time, the same as in docker (dockerd(8), --max-concurrent-downloads).
	parallelLayers = 3
)

// Limits of the content of one layer, tarball or disk, as a protection against bombs.
const (
	maxBytes   = 256 << 30
	maxEntries = 10_000_000
)

var (
	ordinary = semaphore.NewWeighted(maxUnpacking)
	large    = semaphore.NewWeighted(maxLarge)
)

// unpacking calls work, which decompresses a stream, with the window that it may use:
// first an ordinary one, and if that is too small, a large one. The second call has to
// start from the beginning.
func unpacking(ctx context.Context, work func(window int64) error) error {
	err := withSlot(ctx, ordinary, func() error { return work(layer.Window) })
	if errors.Is(err, layer.ErrWindow) {
		err = withSlot(ctx, large, func() error { return work(layer.LargeWindow) })
	}
	return err
}

func withSlot(ctx context.Context, slots *semaphore.Weighted, work func() error) error {
	if err := slots.Acquire(ctx, 1); err != nil {
		return context.Cause(ctx)
	}
	defer slots.Release(1)
	return work()
}

// servers holds the servers from which files are being fetched.
var servers = serverList{slots: map[string]*serverSlots{}}

type serverList struct {
	mu    sync.Mutex
	slots map[string]*serverSlots // by host[:port]
}

type serverSlots struct {
	*semaphore.Weighted
	users int // number of goroutines that fetch from it or wait to
}

// fetching calls work, which fetches something from a server, when the server has a free
// slot.
func (l *serverList) fetching(ctx context.Context, server string, work func() error) error {
	l.mu.Lock()
	s := l.slots[server]
	if s == nil {
		s = &serverSlots{Weighted: semaphore.NewWeighted(maxPerServer)}
		l.slots[server] = s
	}
	s.users++
	l.mu.Unlock()
	defer func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		if s.users--; s.users == 0 {
			delete(l.slots, server)
		}
	}()
	return withSlot(ctx, s.Weighted, work)
}

// budget limits how much a pull may write: it keeps a part of the file system free, and
// the store below its maximum. It is an io.Writer that only counts what is written
// elsewhere. Several goroutines may use it at the same time.
type budget struct {
	dir     string
	reserve int64 // bytes that must stay free
	written atomic.Int64
}

const (
	// freePart is the part of the store's file system that pulls keep free, of its bytes
	// and of its inodes: 1/20.
	freePart = 20

	// checkPeriod is the number of bytes after which the file system is checked again.
	checkPeriod = 16 << 20
)

// budget returns what a pull may write at present.
func (p Puller) budget(ctx context.Context) (*budget, error) {
	var fs unix.Statfs_t
	if err := unix.Statfs(p.Store.Dir, &fs); err != nil {
		return nil, fmt.Errorf("inspect the file system of %s: %w", p.Store.Dir, err)
	}
	b := &budget{dir: p.Store.Dir, reserve: int64(fs.Blocks) * fs.Bsize / freePart}
	if p.MaxBytes > 0 {
		list, err := p.Store.List(ctx)
		if err != nil {
			return nil, err
		}
		left := p.MaxBytes - list.Bytes
		if left <= 0 {
			return nil, fmt.Errorf("the image store %s has %d bytes, and its limit is %d (image_gc.max_size): %w", p.Store.Dir, list.Bytes, p.MaxBytes, unix.ENOSPC)
		}
		b.reserve = max(b.reserve, int64(fs.Bavail)*fs.Bsize-left)
	}
	return b, b.check()
}

// check returns an error if the file system is too full.
func (b *budget) check() error {
	var fs unix.Statfs_t
	if err := unix.Statfs(b.dir, &fs); err != nil {
		return fmt.Errorf("inspect the file system of %s: %w", b.dir, err)
	}
	free := int64(fs.Bavail) * fs.Bsize
	switch {
	case free < b.reserve:
		return fmt.Errorf("the file system of the image store %s has %d bytes left, but %d must stay free (a %dth of it, and everything above image_gc.max_size): %w",
			b.dir, free, b.reserve, freePart, unix.ENOSPC)
	case fs.Files > 0 && fs.Ffree < fs.Files/freePart: // btrfs reports no number of inodes
		return fmt.Errorf("the file system of the image store %s has %d inodes left, but a %dth of them must stay free: %w", b.dir, fs.Ffree, freePart, unix.ENOSPC)
	}
	return nil
}

func (b *budget) Write(p []byte) (int, error) {
	now := b.written.Add(int64(len(p)))
	if now/checkPeriod != (now-int64(len(p)))/checkPeriod {
		if err := b.check(); err != nil {
			return 0, err
		}
	}
	return len(p), nil
}
