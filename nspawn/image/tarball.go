package image

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"path"

	"golang.org/x/sys/unix"

	"nomad-driver-nspawn/nspawn/image/download"
	"nomad-driver-nspawn/nspawn/image/layer"
	"nomad-driver-nspawn/nspawn/image/store"
)

// pullTarball downloads a tarball, verifies it, and only then unpacks it.
func (p Puller) pullTarball(ctx context.Context, pull *store.Pull, r Request) (store.Image, error) {
	request := r.Source.Download
	if err := checkFormat(request.URL); err != nil {
		return store.Image{}, err
	}
	client := p.Download
	client.Inactivity, client.Progress, client.MaxBytes = r.Inactivity, r.Progress, maxBytes
	digest, err := client.Resolve(ctx, request)
	if err != nil {
		return store.Image{}, err
	}
	file, err := p.scratch()
	if err != nil {
		return store.Image{}, err
	}
	defer file.Close()
	if digest == "" { // nobody vouches for it
		if digest, err = client.Fetch(ctx, request, file); err != nil {
			return store.Image{}, err
		}
	}
	tree := layerOf(digest)
	_, err = pull.Layer(ctx, tree, func(ctx context.Context, dir string) error {
		if info, err := file.Stat(); err != nil {
			return err
		} else if info.Size() == 0 {
			pinned := request
			pinned.SHA256 = digest
			if _, err := client.Fetch(ctx, pinned, file); err != nil {
				return err
			}
		}
		return unpackFile(ctx, file, dir)
	})
	if err != nil {
		return store.Image{}, err
	}
	return store.Image{Digest: digest, Layers: []string{tree}}, nil
}

// layerOf is the digest that the tree of a tarball is stored by. It is not that of
// the file: the same bytes may be an OCI layer, which is unpacked otherwise, with
// whiteouts.
func layerOf(digest string) string {
	sum := sha256.Sum256([]byte("tarball " + digest))
	return "sha256:" + hex.EncodeToString(sum[:])
}

// checkFormat takes tarballs.
func checkFormat(address string) error {
	u, err := url.Parse(address)
	if err != nil { // which would show it
		return errors.New("the URL of the image is malformed; special characters, in a password too, must be written as %XX")
	}
	name := path.Base(u.Path)
	kind, _, err := download.Format(name)
	if err != nil {
		return err
	}
	if kind != download.Tar {
		return fmt.Errorf("image file %q is a disk image, which is not supported yet: only tarballs are", name)
	}
	return nil
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

func unpackFile(ctx context.Context, file *os.File, dir string) error {
	if _, err := file.Seek(0, io.SeekStart); err != nil {
		return err
	}
	tar, err := layer.Decompress(file)
	if err != nil {
		return err
	}
	defer tar.Close()
	_, err = layer.Unpack(ctx, tar, dir, layer.Options{MaxBytes: maxBytes, MaxEntries: maxEntries})
	return err
}
