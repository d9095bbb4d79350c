// Package oci finds and reads OCI and Docker images, in registries and in local archives.
// It resolves a reference to the manifest for a platform, and provides the layers as
// streams. It neither stores nor unpacks them.
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

// Client resolves references. The zero value is ready to use: it reaches docker.io and
// other registries over TLS, without credentials.
type Client struct {
	// Platform is the OS, architecture and variant of the images, such as linux/arm64/v8.
	// The default is linux and the architecture of this program.
	Platform string

	// Mirrors lists mirrors to try before a registry, in this order. Each is a
	// host[:port], with an optional path before the repository. Mirrors never receive
	// credentials of tasks.
	Mirrors map[string][]string

	// PlainHTTP lists registries and mirrors (host[:port]) to use without TLS. For all
	// others, plain HTTP is refused, even in redirects.
	PlainHTTP []string

	// CAFile is a file of PEM certificates to trust in addition to the system's.
	CAFile string

	// DockerConfig is the path of a docker config.json, of which auths, credHelpers and
	// credsStore are used. The file is read each time. By default there is none.
	DockerConfig string

	UserAgent string // precedes the library's own
}

// Auth holds the credentials of a task.
type Auth struct{ Username, Password string }

// Image is an image as described by its manifest.
type Image struct {
	Digest string // digest of the manifest; in a docker-archive, which has none, digest of the config
	Config Config
	Layers []Layer // lowest first
}

// Config says how to run the image (OCI image spec, config.md).
type Config struct {
	Entrypoint, Cmd, Env []string
	User, StopSignal     string
	WorkingDir           string   // absolute, or empty; it may not exist in any layer
	Volumes              []string // absolute, sorted: directories to which a task writes even if its root is read-only
}

// Layer is one layer of an image.
type Layer struct {
	Digest string // digest of the bytes that Open returns
	DiffID string // digest of the tar in these bytes
	Size   int64  // number of bytes that Open returns

	image Reference
	open  func(ctx context.Context) (io.ReadCloser, error)
}

// Resolve returns the image to which ref refers, for the Client's platform. A local path
// must be absolute; the caller checks whether it may be read.
//
// Resolve logs in with auth if it is not nil, otherwise with the entry in the docker
// config for the registry, otherwise with the output of a credential helper, and
// otherwise not at all. If soft is set, it continues anonymously when a helper fails or
// the credentials are refused.
//
// Each request is tried up to three times. Use [errors.Is] with [ErrTemporary] to find
// out whether another call could succeed.
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

// Open returns the layer as it is stored: a tar, which may be compressed with gzip or
// zstd. If the layer does not have the right size and digest, reading it ends in another
// error than [io.EOF]. Reading fails when ctx ends. The caller closes the result.
func (l Layer) Open(ctx context.Context) (io.ReadCloser, error) {
	op := fmt.Sprintf("read layer %s of image %s", l.Digest, l.image)
	blob, err := l.open(ctx)
	if err != nil {
		return nil, fail(op, err)
	}
	return &layerReader{ReadCloser: blob, op: op}, nil
}

// layerReader adds to errors what was being read.
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
