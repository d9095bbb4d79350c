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

// layerOf returns the digest under which the tree of a tarball is stored. It differs from
// the file's digest, because the same bytes may be an OCI layer, which is unpacked
// differently, with whiteouts.
func layerOf(digest string) string { return digestOf("tarball " + digest) }

func digestOf(text string) string {
	sum := sha256.Sum256([]byte(text))
	return "sha256:" + hex.EncodeToString(sum[:])
}

func unpackTree(ctx context.Context, file *file, dir string) error {
	return file.unpacking(ctx, func(archive io.Reader, window int64) error {
		if err := emptyDir(dir); err != nil {
			return err
		}
		tar, err := layer.Decompress(archive, window)
		if err != nil {
			return err
		}
		defer tar.Close()
		_, err = layer.Unpack(ctx, io.TeeReader(tar, file.budget), dir, layer.Options{MaxBytes: maxBytes, MaxEntries: maxEntries})
		return err
	})
}
