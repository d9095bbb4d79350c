package image

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"io"

	"nomad-driver-nspawn/nspawn/image/layer"
	"nomad-driver-nspawn/nspawn/image/store"
)

func pullTree(ctx context.Context, pull *store.Pull, digest string, file *file) (store.Image, error) {
	tree := layerOf(digest)
	_, err := pull.Layer(ctx, tree, file.origin, func(ctx context.Context, dir string) error { return unpackTree(ctx, file, dir) })
	if err != nil {
		return store.Image{}, err
	}
	return store.Image{Digest: digest, Layers: []string{tree}}, nil
}

// layerOf is the digest that the tree of a tarball is stored by. It is not that of
// the file: the same bytes may be an OCI layer, which is unpacked otherwise, with
// whiteouts.
func layerOf(digest string) string { return digestOf("tarball " + digest) }

func digestOf(text string) string {
	sum := sha256.Sum256([]byte(text))
	return "sha256:" + hex.EncodeToString(sum[:])
}

func unpackTree(ctx context.Context, file *file, dir string) error {
	return file.unpacking(ctx, func(archive io.Reader, window int64) error {
		if err := emptied(dir); err != nil {
			return err
		}
		tar, err := layer.Decompress(archive, window)
		if err != nil {
			return err
		}
		defer tar.Close()
		_, err = layer.Unpack(ctx, io.TeeReader(tar, file.room), dir, layer.Options{MaxBytes: maxBytes, MaxEntries: maxEntries})
		return err
	})
}
