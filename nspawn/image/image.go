// Package image brings images into the store: from registries, from archives,
// and tarballs and disks from the web.
package image

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"nomad-driver-nspawn/nspawn/image/download"
	"nomad-driver-nspawn/nspawn/image/fetch"
	"nomad-driver-nspawn/nspawn/image/oci"
	"nomad-driver-nspawn/nspawn/image/store"
)

// Source is where an image comes from: Reference, or Download if that is zero.
type Source struct {
	Reference oci.Reference    // in a registry, or in a local archive or layout
	Download  download.Request // of a file
	Kind      download.Kind    // of that file; empty is Tar
	Version   string           // of a local file, which may be replaced
}

// Name is what the store knows the source by. It has no credentials either, but
// tells those of two users apart.
func (s Source) Name() string {
	if s.Reference != (oci.Reference{}) {
		return s.Reference.String() + version(s.Version)
	}
	request := s.Download
	name := request.String() + "#" + string(s.Kind) + "#" + cmp.Or(request.SHA256, string(request.Verify)) + version(s.Version)
	if request.String() != request.URL {
		sum := sha256.Sum256([]byte(request.URL))
		name += "#" + hex.EncodeToString(sum[:8])
	}
	return name
}

func version(v string) string {
	if v == "" {
		return ""
	}
	return "#" + v
}

// String is for people. It has no credentials.
func (s Source) String() string {
	if s.Reference != (oci.Reference{}) {
		return s.Reference.String()
	}
	return s.Download.String()
}

// Policy says when a source is looked at although the store knows it.
type Policy string

// The policies.
const (
	Always  Policy = "always"
	Missing Policy = "missing"
	Never   Policy = "never" // not even if the store does not know it
)

// Policies are all.
var Policies = []string{string(Always), string(Missing), string(Never)}

// DefaultPolicy is that of a source: as docker has it, a tag "latest" is looked
// at each time.
func (s Source) DefaultPolicy() Policy {
	if s.Reference.Tag == "latest" {
		return Always
	}
	return Missing
}

// Request is an image that is wanted.
type Request struct {
	Source   Source
	Policy   Policy
	Auth     *oci.Auth // of the task; may be nil
	AuthSoft bool      // go on without credentials that are refused

	Inactivity time.Duration // for the other side to send something; 0: no limit
	// Progress is told how many bytes were read, of total; -1 if that is not
	// known. Calls do not overlap. It may be nil.
	Progress func(done, total int64)
}

// Puller pulls images into a store.
type Puller struct {
	Store    store.Store
	Registry oci.Client
	Download download.Client // without Progress and Inactivity
	MaxBytes int64           // of the store; 0: no limit
}

// Pull returns an image of the store, after it was brought there if need be.
// Any number of calls, also of other processes, fetch a layer from one origin once, and
// none waits for another origin. The image is not collected until release is called;
// acquire it before.
func (p Puller) Pull(ctx context.Context, r Request) (image store.Image, release func(), err error) {
	pull := p.Store.Begin()
	image, err = p.get(ctx, pull, r)
	if err == nil && len(image.Config) == 0 && image.Disk == "" { // nothing says what it is for
		if err = CheckTree(p.Store.Trees(image)[0]); err != nil {
			err = fmt.Errorf("image %s: %w", r.Source, err)
		}
	}
	if err == nil {
		err = pull.Add(ctx, image, r.name())
	}
	if err != nil {
		pull.Close()
		return store.Image{}, nil, err
	}
	return image, pull.Close, nil
}

func (p Puller) get(ctx context.Context, pull *store.Pull, r Request) (store.Image, error) {
	found, err := p.lookup(ctx, pull, r.name())
	switch {
	case err == nil && r.Policy != Always:
		return found, nil
	case err != nil && !errors.Is(err, store.ErrNotFound):
		return store.Image{}, err
	case r.Policy == Never && err != nil:
		return store.Image{}, fmt.Errorf("image %s is not on this client, and pull_policy is never", r.Source)
	}
	if err := os.MkdirAll(p.Store.Dir, 0o700); err != nil {
		return store.Image{}, fmt.Errorf("make store: %w", err)
	}
	room, err := p.room(ctx)
	if err != nil {
		return store.Image{}, err
	}
	if r.Source.Reference != (oci.Reference{}) {
		return p.pullOCI(ctx, pull, r, room)
	}
	return p.pullFile(ctx, pull, r, room)
}

// name is what the store knows the image by. It tells those who log in as somebody else
// apart: what one may see is not for all who know its name. Their registry decides, for
// each of them.
func (r Request) name() string {
	if r.Auth == nil {
		return r.Source.Name()
	}
	sum := sha256.Sum256([]byte(r.Auth.Username + "\x00" + r.Auth.Password))
	return r.Source.Name() + "#as-" + hex.EncodeToString(sum[:8])
}

// origin is where an image comes from and as whom: what may be as slow, or fail, for
// one task as for another.
func (r Request) origin() string {
	if r.Source.Reference.Path == "" && r.Source.Reference != (oci.Reference{}) {
		// The images of a repository share layers.
		r.Source.Reference.Tag, r.Source.Reference.Digest = "", ""
	}
	return r.name()
}

// lookup finds an image that the store has, and holds its layers.
func (p Puller) lookup(ctx context.Context, pull *store.Pull, name string) (store.Image, error) {
	found, _, err := p.Store.Lookup(name)
	if err != nil {
		return store.Image{}, err
	}
	for _, digest := range found.Layers {
		absent := func(context.Context, string) error { return store.ErrNotFound } // collected just now
		if _, err := pull.Layer(ctx, digest, rand.Text(), absent); err != nil {
			return store.Image{}, err
		}
	}
	if found.Disk != "" {
		_, err = pull.Disk(ctx, found.Disk, rand.Text(), func(context.Context, *os.File) error { return store.ErrNotFound })
	}
	return found, err
}

// Temporary reports whether another try may succeed.
func Temporary(err error) bool { return errors.Is(err, fetch.ErrTemporary) }

// Config is how an image says that it is to be run. A tarball says nothing.
func Config(image store.Image) (config oci.Config, err error) {
	if len(image.Config) == 0 {
		return config, nil
	}
	if err := json.Unmarshal(image.Config, &config); err != nil {
		return config, fmt.Errorf("read the config of image %s: %w", image.Digest, err)
	}
	return config, nil
}

// IsDownload says whether a name is of a file in the web.
func IsDownload(name string) bool {
	return strings.HasPrefix(name, "https://") || strings.HasPrefix(name, "http://")
}
