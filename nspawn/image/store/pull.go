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

// Pull brings one image into the store. What it returned is safe from Collect
// until Close; whatever a pull that was not finished leaves is collected later.
// It may be used by several goroutines.
type Pull struct {
	store Store

	mu   sync.Mutex
	held map[item][]*os.File // with a shared lock on each
}

// Begin starts a pull. It must be closed.
func (s Store) Begin() *Pull {
	return &Pull{store: s, held: map[item][]*os.File{}}
}

// Close ends the protection of what was pulled. A machine that is to use the
// image must have acquired it before.
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

// Layer returns the directory of a layer. If it is not in the store, fill is
// called to unpack it into an empty directory of mode 0755 and to verify it.
//
// origin says where fill gets the layer from, and as whom. However many goroutines and
// processes ask for the layer from one origin, one of them fills; the others wait, as
// long as ctx lets them. Each waits once only: if the one that fills fails or is killed,
// those that waited fill at the same time, each its own directory. Different origins
// never wait for each other, because the digest is known to everybody, and one origin
// may be slow on purpose. Whoever fills first has made the layer; the ctx of all other
// calls of fill in this process ends then.
//
// The digest should be that of the uncompressed content, the DiffID of an OCI
// layer: layers are shared however they were compressed, and the image
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

// Disk returns the path of a raw disk. It is as Layer, with an empty file of
// mode 0600 to be filled, which may be left sparse.
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

// Add puts an image into the store, whose layers or disk this pull has got, and
// remembers that name was resolved to it now.
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

// checkHeld refuses an image that Collect could have taken something of.
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

// filler makes an item at a path.
type filler func(ctx context.Context, path string) error

// obtain holds an item, which fill makes if it is missing.
func (p *Pull) obtain(ctx context.Context, it item, origin string, fill filler) error {
	if err := checkDigest(it.digest); err != nil {
		return err
	}
	waited := false
	for {
		// Before the look at the store, lest the item arrives in between unnoticed.
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

// fillFrom makes an item in the workspace of an origin.
func (p *Pull) fillFrom(ctx context.Context, it item, origin string, fill filler) error {
	dir, err := p.store.workspace(ctx, it, origin)
	if err != nil {
		return err
	}
	return p.complete(ctx, it, dir, fill)
}

// complete makes an item in its empty workspace, unless it was completed just
// before we got that, and gives the workspace up.
func (p *Pull) complete(ctx context.Context, it item, work *os.File, fill filler) error {
	found, err := p.share(ctx, it)
	if !found && err == nil {
		err = p.make(ctx, it, work, fill)
	}
	return errors.Join(err, tree.Remove(work.Name()), work.Close())
}

// share holds an item if it is there.
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

// open holds an item. The lock of the store is held.
func (p *Pull) open(ctx context.Context, it item) error {
	dir, err := openLocked(ctx, p.store.path(it), unix.LOCK_SH)
	if err != nil {
		return err
	}
	p.hold(it, dir)
	return nil
}

// make fills a directory in the workspace, which then becomes the item. That is
// not the workspace itself: others wait for its lock, and would go on to wait
// for those that hold the item.
func (p *Pull) make(ctx context.Context, it item, work *os.File, fill filler) error {
	// Make room first. Of what can not be removed, Collect tells.
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
	// One syncfs(2) for thousands of files. It tells of errors in writing back
	// since kernel 5.8.
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
