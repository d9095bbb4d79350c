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
func (p Puller) pullFile(ctx context.Context, pull *store.Pull, r Request) (store.Image, error) {
	client := p.Download
	client.Inactivity, client.Progress, client.MaxBytes = r.Inactivity, r.Progress, maxBytes
	digest, err := client.Resolve(ctx, r.Source.Download)
	if err != nil {
		return store.Image{}, err
	}
	scratch, err := p.scratch()
	if err != nil {
		return store.Image{}, err
	}
	defer scratch.Close()
	file := file{client, r.Source.Download, scratch}
	if digest == "" { // nobody vouches for it
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

// file is one to be downloaded, at most once.
type file struct {
	client  download.Client
	request download.Request
	local   *os.File
}

func (f file) fetch(ctx context.Context) (digest string, err error) {
	return f.client.Fetch(ctx, f.request, f.local)
}

// open returns the file, verified, at its beginning.
func (f file) open(ctx context.Context) (*os.File, error) {
	info, err := f.local.Stat()
	if err == nil && info.Size() == 0 {
		_, err = f.fetch(ctx)
	}
	if err != nil {
		return nil, err
	}
	_, err = f.local.Seek(0, io.SeekStart)
	return f.local, err
}

// scratch is a file without a name on the store's file system, which is gone with
// its descriptor.
func (p Puller) scratch() (*os.File, error) {
	if err := os.MkdirAll(p.Store.Dir, 0o700); err != nil {
		return nil, err
	}
	fd, err := unix.Open(p.Store.Dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("make a file in %s: %w", p.Store.Dir, err)
	}
	return os.NewFile(uintptr(fd), "download"), nil
}
