package image

import (
	"context"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"nomad-driver-nspawn/nspawn/image/download"
	"nomad-driver-nspawn/nspawn/image/store"
)

// pullFile downloads a tarball or a disk, verifies it, and only then unpacks it.
func (p Puller) pullFile(ctx context.Context, pull *store.Pull, r Request, budget *budget) (store.Image, error) {
	client := p.Download
	client.Inactivity, client.Progress, client.MaxBytes = r.Inactivity, r.Progress, maxBytes
	client.Tee = budget
	digest, err := client.Resolve(ctx, r.Source.Download)
	if err != nil {
		return store.Image{}, err
	}
	scratch, err := p.scratch()
	if err != nil {
		return store.Image{}, err
	}
	defer scratch.Close()
	file := &file{client: client, request: r.Source.Download, origin: r.origin(), budget: budget, local: scratch}
	if digest == "" { // no checksum is known
		if digest, err = file.fetch(ctx); err != nil {
			return store.Image{}, err
		}
	}
	file.request.SHA256 = digest
	switch r.Source.Kind {
	case download.Raw, download.QCOW2:
		return p.pullDisk(ctx, pull, digest, file, r.Source.Kind)
	}
	return pullTree(ctx, pull, digest, file)
}

// file is a file that is downloaded at most once.
type file struct {
	client  download.Client
	request download.Request
	origin  string
	budget  *budget
	local   *os.File
	whole   bool // local contains the complete file, verified
}

func (f *file) fetch(ctx context.Context) (digest string, err error) {
	if err := f.local.Truncate(0); err != nil { // an earlier attempt may have been interrupted
		return "", err
	}
	if _, err := f.local.Seek(0, io.SeekStart); err != nil {
		return "", err
	}
	err = servers.fetching(ctx, f.request.Server(), func() error {
		digest, err = f.client.Fetch(ctx, f.request, f.local)
		return err
	})
	f.whole = err == nil
	return digest, err
}

// unpacking calls work with the verified file, read from its beginning.
func (f *file) unpacking(ctx context.Context, work func(packed io.Reader, window int64) error) error {
	if !f.whole {
		if _, err := f.fetch(ctx); err != nil {
			return err
		}
	}
	return unpacking(ctx, func(window int64) error {
		if _, err := f.local.Seek(0, io.SeekStart); err != nil {
			return err
		}
		return work(f.local, window)
	})
}

// scratch returns a file without a name on the store's file system. It disappears when it
// is closed.
func (p Puller) scratch() (*os.File, error) {
	fd, err := unix.Open(p.Store.Dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("make a file in %s: %w", p.Store.Dir, err)
	}
	return os.NewFile(uintptr(fd), "download"), nil
}
