package oci

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"syscall"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"
)

// Annotations that name a manifest of a layout: the tag (OCI image spec, annotations.md),
// and the full name, which Docker and containerd add.
const (
	annotationTag  = "org.opencontainers.image.ref.name"
	annotationName = "io.containerd.image.name"
)

// layout is an OCI image layout (OCI image spec, image-layout.md).
type layout struct {
	// open opens a file by its path in the layout, and returns its size.
	open func(name string) (io.ReadCloser, int64, error)
}

func resolveLayout(ctx context.Context, l layout, tag string, platform v1.Platform) (*Image, error) {
	raw, err := readFile(l.open, "index.json")
	if err != nil {
		return nil, err
	}
	index, err := parseManifest(raw)
	if err != nil {
		return nil, err
	}
	if index.Manifests == nil {
		return nil, errors.New("index.json is not an index")
	}
	tagged, err := selectTag(index.Manifests, tag)
	if err != nil {
		return nil, err
	}
	return finder{l, platform}.findIn(ctx, tagged, 0)
}

// readFile reads a JSON document of an archive or layout.
func readFile(open func(string) (io.ReadCloser, int64, error), name string) ([]byte, error) {
	file, _, err := open(name)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	raw, err := readDocument(file)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	return raw, nil
}

// selectTag returns the manifests with the given tag. If the tag is empty, it returns all
// manifests, provided that they have no different tags.
func selectTag(manifests []v1.Descriptor, tag string) ([]v1.Descriptor, error) {
	var tags []string
	var selected []v1.Descriptor
	for _, m := range manifests {
		has, name := m.Annotations[annotationTag], m.Annotations[annotationName]
		tags = append(tags, has)
		if tag == "" || tag == has || tag == name {
			selected = append(selected, m)
		}
	}
	slices.Sort(tags)
	tags = slices.Compact(tags)
	if len(selected) == 0 {
		return nil, fmt.Errorf("no image %q, only %q", tag, tags)
	}
	if tag == "" && len(tags) > 1 {
		return nil, fmt.Errorf("several images, name one after a colon: %s", strings.Join(tags, ", "))
	}
	return selected, nil
}

func (l layout) manifest(ctx context.Context, d v1.Descriptor) ([]byte, error) {
	return document(ctx, l, d)
}

func (l layout) blob(ctx context.Context, d v1.Descriptor) (io.ReadCloser, error) {
	file, size, err := l.open("blobs/" + d.Digest.Algorithm + "/" + d.Digest.Hex)
	if err != nil {
		return nil, err
	}
	if size != d.Size {
		file.Close()
		return nil, fmt.Errorf("blob %s has %d bytes, not %d", d.Digest, size, d.Size)
	}
	return verified(ctx, file, d)
}

// directory is a layout in a directory. Symbolic links cannot lead out of it.
type directory string

func (d directory) open(name string) (io.ReadCloser, int64, error) {
	dir, err := openPlain(string(d), unix.O_DIRECTORY)
	if err != nil {
		return nil, 0, err
	}
	defer dir.Close()
	root, err := os.OpenRoot(fmt.Sprintf("/proc/self/fd/%d", dir.Fd()))
	if err != nil {
		return nil, 0, err
	}
	defer root.Close()
	return regular(root.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)) // without O_NONBLOCK, opening a FIFO would wait
}

// regular returns the opened file and its size if it is a regular file.
func regular(file *os.File, err error) (*os.File, int64, error) {
	if err != nil {
		return nil, 0, err
	}
	info, err := file.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%s is not a regular file", file.Name())
	}
	if err != nil {
		file.Close()
		return nil, 0, err
	}
	return file, info.Size(), nil
}
