package oci

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// savedImage is an entry of manifest.json in a docker-archive (Docker image spec 1.2,
// "Combined Image JSON + Filesystem Changeset Format").
type savedImage struct {
	Config   string
	RepoTags []string
	Layers   []string
}

func resolveDockerArchive(ctx context.Context, a *archive, name string, platform v1.Platform) (*Image, error) {
	raw, err := readFile(a.open, "manifest.json")
	if err != nil {
		return nil, err
	}
	var all []savedImage
	if err := json.Unmarshal(raw, &all); err != nil {
		return nil, fmt.Errorf("parse manifest.json: %w", err)
	}
	saved, err := selectName(all, name)
	if err != nil {
		return nil, err
	}
	raw, err = readFile(a.open, saved.Config)
	if err != nil {
		return nil, err
	}
	config, err := parseConfig(raw)
	if err != nil {
		return nil, err
	}
	if err := config.check(platform, false, len(saved.Layers)); err != nil {
		return nil, err
	}
	if len(saved.Layers) > maxLayers {
		return nil, fmt.Errorf("image has %d layers, more than the %d that overlayfs supports", len(saved.Layers), maxLayers)
	}
	digest, _, err := v1.SHA256(bytes.NewReader(raw))
	if err != nil {
		return nil, err
	}
	image := &Image{Digest: digest.String(), Config: config.image()}
	for i, file := range saved.Layers {
		if config.RootFS.DiffIDs[i] == (v1.Hash{}) {
			return nil, fmt.Errorf("layer %s has no diff ID in the config", file)
		}
		layer, err := a.layer(ctx, file, config.RootFS.DiffIDs[i])
		if err != nil {
			return nil, err
		}
		image.Layers = append(image.Layers, layer)
	}
	return image, nil
}

// selectName returns the image with the given full name. If the name is empty, it returns
// the only image.
func selectName(all []savedImage, name string) (savedImage, error) {
	if name == "" && len(all) == 1 {
		return all[0], nil
	}
	var has []string
	for _, image := range all {
		for _, tag := range image.RepoTags {
			ref, err := parseName(tag)
			if err != nil {
				return savedImage{}, fmt.Errorf("manifest.json has a malformed name %.100q", tag)
			}
			has = append(has, ref.fullName())
			if name == ref.fullName() {
				return image, nil
			}
		}
	}
	slices.Sort(has)
	if name == "" {
		return savedImage{}, fmt.Errorf("%d images, name one after a colon: %s", len(all), strings.Join(has, ", "))
	}
	return savedImage{}, fmt.Errorf("no image %s, only %q", name, has)
}

// layer returns the layer in a file of the archive. Docker and Podman write plain tars,
// whose digest is the diff ID. Compressed layers, which other tools write, are read once
// to compute their digest.
func (a *archive) layer(ctx context.Context, name string, diffID v1.Hash) (Layer, error) {
	file, size, err := a.open(name)
	if err != nil {
		return Layer{}, err
	}
	defer file.Close()
	digest := diffID
	reader := &verifyingReader{ReadCloser: file, ctx: ctx, want: v1.Descriptor{Size: size}}
	start := make([]byte, 4)
	if _, err := io.ReadFull(reader, start); err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) {
		return Layer{}, err
	}
	if compressed(start) {
		if digest, _, err = v1.SHA256(io.MultiReader(bytes.NewReader(start), reader)); err != nil {
			return Layer{}, err
		}
	}
	d := v1.Descriptor{Digest: digest, Size: size}
	open := func(ctx context.Context) (io.ReadCloser, error) {
		file, _, err := a.open(name)
		if err != nil {
			return nil, err
		}
		return verified(ctx, file, d)
	}
	return Layer{Digest: digest.String(), DiffID: diffID.String(), Size: size, open: open}, nil
}

// compressed reports whether a file begins like gzip (RFC 1952) or zstd (RFC 8878).
func compressed(start []byte) bool {
	return bytes.HasPrefix(start, []byte{0x1f, 0x8b}) || bytes.HasPrefix(start, []byte{0x28, 0xb5, 0x2f, 0xfd})
}
