package oci

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// maxDepth limits indexes in indexes. BuildKit and skopeo nest two.
const maxDepth = 4

// dockerZstdLayer is missing in types. BuildKit writes it for zstd layers in images with
// Docker's media types.
const dockerZstdLayer types.MediaType = "application/vnd.docker.image.rootfs.diff.tar.zstd"

// manifest is an index, or the manifest of an image. Its fields show which of them it is:
// the media type in a registry's response is not always right, and the one in the
// document is optional.
type manifest struct {
	SchemaVersion int             `json:"schemaVersion"`
	MediaType     types.MediaType `json:"mediaType"`
	Manifests     []v1.Descriptor `json:"manifests"`
	Config        *v1.Descriptor  `json:"config"`
	Layers        []v1.Descriptor `json:"layers"`
}

// parseManifest refuses documents that could be read as an index and as an image
// (CVE-2021-41190).
func parseManifest(raw []byte) (manifest, error) {
	var m manifest
	if err := json.Unmarshal(raw, &m); err != nil {
		return manifest{}, fmt.Errorf("parse manifest: %w", err)
	}
	isIndex, isImage := m.Manifests != nil, m.Config != nil
	switch {
	case m.SchemaVersion != 2:
		return manifest{}, fmt.Errorf("manifest of schema version %d is not supported, only 2: push the image with a newer tool", m.SchemaVersion)
	case isIndex == isImage, isIndex && m.Layers != nil:
		return manifest{}, errors.New("manifest is not clearly an index or an image")
	case m.MediaType == "":
		return m, nil
	case isIndex != m.MediaType.IsIndex(), isImage != m.MediaType.IsImage():
		return manifest{}, fmt.Errorf("manifest has unexpected media type %q", m.MediaType)
	}
	return m, nil
}

// maxLayers is the maximum number of layers in an image, which is the limit of overlayfs
// (OVL_MAX_STACK). docker makes images with up to 127 layers.
const maxLayers = 500

// finder finds the image for a platform.
type finder struct {
	content
	platform v1.Platform
}

// find returns the image that a manifest describes, or the matching image of an index.
// digest is the manifest's digest. chosen means that the platform has been checked
// already.
func (f finder) find(ctx context.Context, raw []byte, digest v1.Hash, chosen bool, depth int) (*Image, error) {
	m, err := parseManifest(raw)
	if err != nil {
		return nil, err
	}
	if m.Manifests != nil {
		return f.findIn(ctx, m.Manifests, depth)
	}
	if len(m.Layers) > maxLayers {
		return nil, fmt.Errorf("image has %d layers, more than the %d that overlayfs supports", len(m.Layers), maxLayers)
	}
	config, err := f.config(ctx, *m.Config)
	if err != nil {
		return nil, err
	}
	if err := config.check(f.platform, chosen, len(m.Layers)); err != nil {
		return nil, err
	}
	image := &Image{Digest: digest.String(), Config: config.image()}
	for i, d := range m.Layers {
		if err := checkLayer(d, config.RootFS.DiffIDs[i]); err != nil {
			return nil, err
		}
		image.Layers = append(image.Layers, f.layer(d, config.RootFS.DiffIDs[i]))
	}
	return image, nil
}

// findIn continues with the matching manifest of an index.
func (f finder) findIn(ctx context.Context, index []v1.Descriptor, depth int) (*Image, error) {
	if depth == maxDepth {
		return nil, fmt.Errorf("indexes are nested deeper than %d", maxDepth)
	}
	d, fits, err := choose(index, f.platform)
	if err != nil {
		return nil, err
	}
	raw, err := f.manifest(ctx, d)
	if err != nil {
		return nil, fmt.Errorf("get manifest %s: %w", d.Digest, err)
	}
	return f.find(ctx, raw, d.Digest, fits, depth+1)
}

func (f finder) layer(d v1.Descriptor, diffID v1.Hash) Layer {
	return Layer{
		Digest: d.Digest.String(),
		DiffID: diffID.String(),
		Size:   d.Size,
		open:   func(ctx context.Context) (io.ReadCloser, error) { return f.blob(ctx, d) },
	}
}

func checkLayer(d v1.Descriptor, diffID v1.Hash) error {
	switch d.MediaType {
	case types.DockerLayer, types.DockerUncompressedLayer, dockerZstdLayer,
		types.OCILayer, types.OCIUncompressedLayer, types.OCILayerZStd:
	default:
		if !d.MediaType.IsDistributable() {
			return fmt.Errorf("layer %s is foreign (media type %q): foreign layers are not fetched", d.Digest, d.MediaType)
		}
		return fmt.Errorf("layer %s has unknown media type %q", d.Digest, d.MediaType)
	}
	switch {
	case d.Digest == (v1.Hash{}), diffID == (v1.Hash{}):
		return fmt.Errorf("layer %s has no digest, or no diff ID in the config", d.Digest)
	case d.Size < 0:
		return fmt.Errorf("layer %s has size %d", d.Digest, d.Size)
	}
	return nil
}

// config reads the config of an image.
func (f finder) config(ctx context.Context, d v1.Descriptor) (configFile, error) {
	if !d.MediaType.IsConfig() {
		return configFile{}, fmt.Errorf("not a container image, but an artifact with config of media type %q", d.MediaType)
	}
	raw, err := document(ctx, f.content, d)
	if err != nil {
		return configFile{}, fmt.Errorf("get config %s: %w", d.Digest, err)
	}
	return parseConfig(raw)
}
