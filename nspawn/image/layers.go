package image

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"slices"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"nomad-driver-nspawn/nspawn/image/layer"
	"nomad-driver-nspawn/nspawn/image/oci"
	"nomad-driver-nspawn/nspawn/image/store"
)

// parallelLayers is how many layers of an image are fetched at once, as docker
// does (dockerd(8), --max-concurrent-downloads).
const parallelLayers = 3

func (p Puller) pullOCI(ctx context.Context, pull *store.Pull, r Request) (store.Image, error) {
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
			_, err := pull.Layer(ctx, l.DiffID, func(ctx context.Context, dir string) error {
				return unpack(ctx, l, dir, r, progress)
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

// resolve reads documents of some kilobytes: as long as nothing may come, that is
// all that they may take.
func (p Puller) resolve(ctx context.Context, r Request) (*oci.Image, error) {
	limit := r.Inactivity
	if r.Source.Reference.Path != "" {
		limit = 0 // an archive may be read whole
	}
	ctx, _, cancel := watchdog(ctx, limit)
	defer cancel()
	found, err := p.Registry.Resolve(ctx, r.Source.Reference, r.Auth, r.AuthSoft)
	return found, cause(ctx, err)
}

// topmostFirst has each layer once: overlayfs takes none twice, and what the
// topmost of two has, the other cannot add to.
func topmostFirst(layers []oci.Layer) (digests []string) {
	for _, l := range slices.Backward(layers) {
		if !slices.Contains(digests, l.DiffID) {
			digests = append(digests, l.DiffID)
		}
	}
	return digests
}

// visible leaves out what is below a layer whose root is opaque, which overlayfs
// does not see for itself.
func visible(s store.Store, image store.Image) []string {
	for i, tree := range s.Trees(image) {
		value := make([]byte, 1)
		if n, err := unix.Lgetxattr(tree, "trusted.overlay.opaque", value); err == nil && string(value[:n]) == "y" {
			return image.Layers[:i+1]
		}
	}
	return image.Layers
}

// unpack fetches a layer and unpacks it on the way. What is wrong of it is
// known at the end, when it has not got its name yet.
func unpack(ctx context.Context, l oci.Layer, dir string, r Request, progress *progress) error {
	ctx, alive, cancel := watchdog(ctx, r.Inactivity)
	blob, err := l.Open(ctx)
	if err != nil {
		cancel()
		return cause(ctx, err)
	}
	defer blob.Close()
	tar, err := layer.Decompress(progress.reader(blob, alive))
	if err != nil {
		cancel()
		return cause(ctx, err)
	}
	defer tar.Close()
	defer cancel() // before Close, which waits for a read
	hash := sha256.New()
	if _, err := layer.Unpack(ctx, io.TeeReader(tar, hash), dir, layer.Options{Whiteouts: true, Unmarked: true, MaxBytes: maxBytes, MaxEntries: maxEntries}); err != nil {
		return cause(ctx, err)
	}
	if got := "sha256:" + hex.EncodeToString(hash.Sum(nil)); got != l.DiffID {
		return fmt.Errorf("layer %s of image %s unpacks to %s, but its config says %s", l.Digest, r.Source, got, l.DiffID)
	}
	return nil
}
