package image

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"nomad-driver-nspawn/nspawn/image/fetch"
	"nomad-driver-nspawn/nspawn/image/layer"
	"nomad-driver-nspawn/nspawn/image/oci"
	"nomad-driver-nspawn/nspawn/image/store"
	"nomad-driver-nspawn/nspawn/tree"
)

func (p Puller) pullOCI(ctx context.Context, pull *store.Pull, r Request, budget *budget) (store.Image, error) {
	found, err := p.resolve(ctx, r)
	if err != nil {
		return store.Image{}, err
	}
	config, err := json.Marshal(found.Config)
	if err != nil {
		return store.Image{}, err
	}
	image := store.Image{Digest: found.Digest, Config: config, Layers: topmostFirst(found.Layers)}
	progress := newProgress(r.Progress, found.Layers)
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(parallelLayers)
	for _, l := range found.Layers {
		group.Go(func() error {
			_, err := pull.Layer(ctx, l.DiffID, r.origin(), func(ctx context.Context, dir string) error {
				return layerPull{p, r, l, budget, progress}.unpack(ctx, dir)
			})
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return store.Image{}, err
	}
	image.Layers = visible(p.Store, image)
	return image, nil
}

// resolve fetches the manifest and the config, which have a few kilobytes. They may take
// as long as a server may send nothing.
func (p Puller) resolve(ctx context.Context, r Request) (*oci.Image, error) {
	if r.Inactivity > 0 && r.Source.Reference.Path == "" { // an archive may have to be read completely
		late := fetch.Temporary(fmt.Errorf("the manifest and config have not arrived for %s", r.Inactivity))
		limited, cancel := context.WithTimeoutCause(ctx, r.Inactivity, late)
		defer cancel()
		ctx = limited
	}
	found, err := p.Registry.Resolve(ctx, r.Source.Reference, r.Auth, r.AuthSoft)
	return found, withCause(ctx, err)
}

// withCause adds the reason why the context has ended to an error, if it is temporary.
func withCause(ctx context.Context, err error) error {
	if why := context.Cause(ctx); err != nil && errors.Is(why, fetch.ErrTemporary) {
		return errors.Join(err, why)
	}
	return err
}

// topmostFirst reverses the order of the layers and drops repeats. overlayfs refuses a
// layer that is given twice, and a lower copy of a layer changes nothing.
func topmostFirst(layers []oci.Layer) (digests []string) {
	for _, l := range slices.Backward(layers) {
		if !slices.Contains(digests, l.DiffID) {
			digests = append(digests, l.DiffID)
		}
	}
	return digests
}

// visible drops the layers below a layer whose root is opaque. overlayfs ignores that
// mark on the root of a layer.
func visible(s store.Store, image store.Image) []string {
	for i, tree := range s.Trees(image) {
		value := make([]byte, 1)
		if n, err := unix.Lgetxattr(tree, "trusted.overlay.opaque", value); err == nil && string(value[:n]) == "y" {
			return image.Layers[:i+1]
		}
	}
	return image.Layers
}

// layerPull fetches one layer and unpacks it into a directory.
type layerPull struct {
	Puller
	request  Request
	layer    oci.Layer
	budget   *budget
	progress *progress
}

// unpack fetches the layer completely before it unpacks it, so that a slow server does
// not occupy memory for decompression. Whether the content is right is known only at the
// end; the layer gets its name in the store after that.
func (l layerPull) unpack(ctx context.Context, dir string) error {
	if l.request.Source.Reference.Path != "" { // it is on this host
		return unpacking(ctx, func(window int64) error {
			blob, err := l.layer.Open(ctx)
			if err != nil {
				return err
			}
			defer blob.Close()
			return l.unpackFrom(ctx, l.progress.reader(blob), dir, window)
		})
	}
	blob, err := l.scratch()
	if err != nil {
		return err
	}
	defer blob.Close()
	err = servers.fetching(ctx, l.request.Source.Reference.Registry, func() error { return l.fetch(ctx, blob) })
	if err != nil {
		return err
	}
	return unpacking(ctx, func(window int64) error {
		if _, err := blob.Seek(0, io.SeekStart); err != nil {
			return err
		}
		return l.unpackFrom(ctx, blob, dir, window)
	})
}

// fetch writes the verified bytes of the layer to a file.
func (l layerPull) fetch(ctx context.Context, to io.Writer) error {
	ctx, watch := fetch.Watch(ctx, l.request.Inactivity)
	defer watch.Stop()
	watch.Wait()
	blob, err := l.layer.Open(ctx)
	watch.Got(0, true)
	if err != nil {
		return withCause(ctx, err)
	}
	defer blob.Close()
	_, err = io.Copy(io.MultiWriter(to, l.budget), l.progress.reader(watch.Reader(blob)))
	return withCause(ctx, err)
}

// unpackFrom unpacks the layer from its bytes.
func (l layerPull) unpackFrom(ctx context.Context, blob io.Reader, dir string, window int64) error {
	if err := emptyDir(dir); err != nil {
		return err
	}
	tar, err := layer.Decompress(blob, window)
	if err != nil {
		return err
	}
	defer tar.Close()
	hash := sha256.New()
	content := io.TeeReader(tar, io.MultiWriter(hash, l.budget))
	if _, err := layer.Unpack(ctx, content, dir, layer.Options{Whiteouts: true, Unmarked: true, MaxBytes: maxBytes, MaxEntries: maxEntries}); err != nil {
		return err
	}
	if got := "sha256:" + hex.EncodeToString(hash.Sum(nil)); got != l.layer.DiffID {
		return fmt.Errorf("layer %s of image %s unpacks to %s, but its config says %s", l.layer.Digest, l.request.Source, got, l.layer.DiffID)
	}
	return nil
}

// emptyDir removes everything that an earlier attempt has left in a directory.
func emptyDir(dir string) error {
	left, err := os.ReadDir(dir)
	if err != nil || len(left) == 0 {
		return err
	}
	if err := tree.Remove(dir); err != nil {
		return err
	}
	return os.Mkdir(dir, 0o755)
}
