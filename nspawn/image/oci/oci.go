// Package oci finds and reads OCI and Docker images, in registries and in local
// archives. It resolves a reference to the manifest for a platform and gives
// the layers as streams; it stores and unpacks nothing.
package oci

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"runtime"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// Client resolves references. Its zero value is ready: docker.io and other
// registries over TLS, without credentials.
type Client struct {
	// Platform is the OS, architecture and variant that images are for, such as
	// linux/arm64/v8. Default: linux and the architecture of this program.
	Platform string

	// Mirrors are tried before a registry, in this order, each a host[:port]
	// with an optional path before the repository. They are given no
	// credentials of tasks.
	Mirrors map[string][]string

	// PlainHTTP are the registries and mirrors (host[:port]) spoken to without
	// TLS. With all others, plain HTTP is refused, also in redirects.
	PlainHTTP []string

	// CAFile is a file of PEM certificates, trusted besides the system's.
	CAFile string

	// DockerConfig is a docker config.json, of which auths, credHelpers and
	// credsStore are used. It is read anew each time. Default: none.
	DockerConfig string

	UserAgent string // put before the library's own
}

// Auth is what a task logs in with.
type Auth struct{ Username, Password string }

// Image is what a manifest says.
type Image struct {
	Digest string // of the manifest; of the config in a docker-archive, which has none
	Config Config
	Layers []Layer // lowest first
}

// Config is how the image is to be run (OCI image spec, config.md).
type Config struct {
	Entrypoint, Cmd, Env []string
	User, StopSignal     string
	WorkingDir           string   // absolute, or empty; no layer may have it
	Volumes              []string // absolute, sorted: directories that a task writes to even where its root is read-only
}

// Layer is one layer of an image.
type Layer struct {
	Digest string // of the bytes that Open returns
	DiffID string // digest of the tar in them
	Size   int64  // of the bytes that Open returns

	image Reference
	open  func(ctx context.Context) (io.ReadCloser, error)
}

// Resolve returns the image that ref stands for, on the Client's platform. The
// path of a local one must be absolute; that it may be read is the caller's to
// check.
//
// It logs in with auth if not nil, else with what the docker config has for the
// registry, else with what a credential helper says, else not at all. With
// soft, if a helper fails or the credentials are refused, it goes on
// anonymously.
//
// Each request is tried up to three times. Use [errors.Is] with [ErrTemporary]
// to see if another call could help.
func (c Client) Resolve(ctx context.Context, ref Reference, auth *Auth, soft bool) (*Image, error) {
	image, err := c.resolve(ctx, ref, auth, soft)
	if err != nil {
		return nil, fail("resolve image "+ref.String(), err)
	}
	for i := range image.Layers {
		image.Layers[i].image = ref
	}
	return image, nil
}

func (c Client) resolve(ctx context.Context, ref Reference, auth *Auth, soft bool) (*Image, error) {
	platform, err := v1.ParsePlatform(cmp.Or(c.Platform, "linux/"+runtime.GOARCH))
	if err != nil {
		return nil, err
	}
	if ref.Path == "" {
		return c.pull(ctx, ref, *platform, auth, soft)
	}
	if !filepath.IsAbs(ref.Path) {
		return nil, errors.New("path is not absolute")
	}
	switch ref.Transport {
	case fromLayout:
		return resolveLayout(ctx, layout{directory(ref.Path).open}, ref.Tag, *platform)
	case fromOCIArchive, fromDockerArchive:
		archive, err := readArchive(ctx, ref.Path)
		if err != nil {
			return nil, err
		}
		if ref.Transport == fromDockerArchive {
			return resolveDockerArchive(ctx, archive, ref.Tag, *platform)
		}
		return resolveLayout(ctx, layout{archive.open}, ref.Tag, *platform)
	}
	return nil, fmt.Errorf("unknown transport %q", ref.Transport)
}

// Open returns the layer as it is stored: a tar, which may be compressed with
// gzip or zstd. Reading it ends in an error instead of [io.EOF] if it has not
// the layer's size and digest. It is the caller's to close. When ctx ends, so
// does the reading.
func (l Layer) Open(ctx context.Context) (io.ReadCloser, error) {
	op := fmt.Sprintf("read layer %s of image %s", l.Digest, l.image)
	blob, err := l.open(ctx)
	if err != nil {
		return nil, fail(op, err)
	}
	return &layerReader{ReadCloser: blob, op: op}, nil
}

// layerReader says in errors what was read.
type layerReader struct {
	io.ReadCloser
	op string
}

func (r *layerReader) Read(p []byte) (int, error) {
	n, err := r.ReadCloser.Read(p)
	if err != nil && err != io.EOF { // EOF is never wrapped
		err = fail(r.op, err)
	}
	return n, err
}
