package store

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"

	"nomad-driver-nspawn/nspawn/tree"
)

// Pull brings one image into the store. What it has returned is safe from Collect until
// Close; the leftovers of an unfinished pull are collected later. Several goroutines may
// use it.
type Pull struct {
	store Store

	mu   sync.Mutex
	held map[item][]*os.File // each file has a shared lock
}

// Begin starts a pull. The caller must close it.
func (s Store) Begin() *Pull {
	return &Pull{store: s, held: map[item][]*os.File{}}
}

// Close ends the protection of what was pulled. If a machine is to use the image, acquire
// it for the machine before.
func (p *Pull) Close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, files := range p.held {
		for _, file := range files {
			file.Close()
		}
	}
	clear(p.held)
}

// Layer returns the directory of a layer. If the layer is not in the store, Layer calls
// fill to unpack it into an empty directory of mode 0755 and to verify it.
//
// origin identifies where fill gets the layer from, and with which credentials. However
// many goroutines and processes request the layer from one origin, only one of them
// fills, and the others wait for as long as their ctx permits. Each waits only once: if
// the one that fills fails or is killed, all that have waited fill at the same time, each
// in its own directory.
//
// Different origins never wait for each other, because every user can know the digest,
// and an origin may be slow on purpose. The first one to finish has made the layer; the
// ctx of all other calls of fill in this process then ends.
//
// The digest should be the digest of the uncompressed content, the DiffID of an OCI
// layer. Then layers are shared regardless of their compression, and the image
// configuration tells which ones are needed before any is downloaded.
func (p *Pull) Layer(ctx context.Context, digest, origin string, fill func(ctx context.Context, dir string) error) (path string, err error) {
	it := item{layers, digest}
	err = p.obtain(ctx, it, origin, func(ctx context.Context, path string) error {
		if err := os.Mkdir(path, 0o755); err != nil {
			return err
		}
		return fill(ctx, path)
	})
	if err != nil {
		return "", fmt.Errorf("get layer %s: %w", digest, err)
	}
	return p.store.payload(it), nil
}

// Disk returns the path of a raw disk. It works like Layer, but fill gets an empty file
// of mode 0600, which it may leave sparse.
func (p *Pull) Disk(ctx context.Context, digest, origin string, fill func(ctx context.Context, file *os.File) error) (path string, err error) {
	it := item{disks, digest}
	err = p.obtain(ctx, it, origin, func(ctx context.Context, path string) error {
		file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return err
		}
		return errors.Join(fill(ctx, file), file.Close())
	})
	if err != nil {
		return "", fmt.Errorf("get disk %s: %w", digest, err)
	}
	return p.store.payload(it), nil
}

// Add adds an image to the store and records that name has been resolved to it. This pull
// must have obtained the layers or the disk of the image.
func (p *Pull) Add(ctx context.Context, image Image, name string) error {
	err := p.checkHeld(image)
	if err == nil && name == "" {
		err = errors.New("it has no name")
	}
	if err == nil {
		err = p.store.locked(ctx, func() error { return p.add(ctx, image, name) })
	}
	if err != nil {
		return fmt.Errorf("add image %s: %w", image.Digest, err)
	}
	return nil
}

func (p *Pull) add(ctx context.Context, image Image, name string) error {
	if err := p.store.writeImage(image); err != nil {
		return err
	}
	file, err := openLocked(ctx, p.store.imagePath(image.Digest), unix.LOCK_SH)
	if err != nil {
		return err
	}
	p.hold(item{digest: image.Digest}, file)
	return p.store.writeName(name, image.Digest)
}

// checkHeld refuses an image with an item that Collect may have removed.
func (p *Pull) checkHeld(image Image) error {
	if err := image.check(); err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, it := range image.items() {
		if p.held[it] == nil {
			return fmt.Errorf("%s of %s was not obtained by this pull", it.digest, it.folder)
		}
	}
	return nil
}

func (p *Pull) hold(it item, file *os.File) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.held[it] = append(p.held[it], file)
}

// filler creates an item at a path.
type filler func(ctx context.Context, path string) error

// obtain holds an item, after calling fill if the item is missing.
func (p *Pull) obtain(ctx context.Context, it item, origin string, fill filler) error {
	if err := checkDigest(it.digest); err != nil {
		return err
	}
	waited := false
	for {
		// This comes before the search in the store, so that no arrival is missed.
		filling, done := arrivals.expect(ctx, p.store.path(it))
		found, err := p.share(ctx, it)
		if found || err != nil {
			done()
			return err
		}
		if waited {
			origin = rand.Text()
		}
		err = p.fillFrom(filling, it, origin, fill)
		done()
		switch {
		case err == nil:
			return nil
		case errors.Is(err, errGone):
			waited = true
		case ctx.Err() != nil || !errors.Is(context.Cause(filling), errArrived):
			return err
		}
	}
}

// fillFrom creates an item in the workspace of an origin.
func (p *Pull) fillFrom(ctx context.Context, it item, origin string, fill filler) error {
	dir, err := p.store.workspace(ctx, it, origin)
	if err != nil {
		return err
	}
	return p.complete(ctx, it, dir, fill)
}

// complete creates an item in its empty workspace, unless the item was completed just
// before we got the workspace. Then it gives the workspace up.
func (p *Pull) complete(ctx context.Context, it item, work *os.File, fill filler) error {
	found, err := p.share(ctx, it)
	if !found && err == nil {
		err = p.make(ctx, it, work, fill)
	}
	return errors.Join(err, tree.Remove(work.Name()), work.Close())
}

// share holds an item if it exists.
func (p *Pull) share(ctx context.Context, it item) (found bool, err error) {
	err = p.store.locked(ctx, func() error {
		err := p.open(ctx, it)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		found = err == nil
		return err
	})
	return found, err
}

// open holds an item. The caller holds the lock of the store.
func (p *Pull) open(ctx context.Context, it item) error {
	dir, err := openLocked(ctx, p.store.path(it), unix.LOCK_SH)
	if err != nil {
		return err
	}
	p.hold(it, dir)
	return nil
}

// make fills a directory in the workspace, which then becomes the item. The workspace
// itself does not become the item: other pulls wait for its lock, and would then have to
// wait for those that hold the item.
func (p *Pull) make(ctx context.Context, it item, work *os.File, fill filler) error {
	// Make room first. Collect reports what cannot be removed.
	_ = p.store.sweep(ctx)
	dir := filepath.Join(work.Name(), "item")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	if err := fill(ctx, filepath.Join(dir, it.kind.payload)); err != nil {
		return err
	}
	if err := writeSize(dir); err != nil {
		return err
	}
	// One syncfs(2) replaces thousands of fsync(2). It reports write-back errors since
	// Linux 5.8.
	if err := unix.Syncfs(int(work.Fd())); err != nil {
		return fmt.Errorf("sync %s: %w", dir, err)
	}
	return p.store.locked(ctx, func() error {
		// Another origin may have been faster. Then open holds its item.
		err := unix.Renameat2(unix.AT_FDCWD, dir, unix.AT_FDCWD, p.store.path(it), unix.RENAME_NOREPLACE)
		if err != nil && !errors.Is(err, fs.ErrExist) {
			return &os.LinkError{Op: "rename", Old: dir, New: p.store.path(it), Err: err}
		}
		if err := p.open(ctx, it); err != nil {
			return err
		}
		arrivals.announce(p.store.path(it))
		return nil
	})
}
