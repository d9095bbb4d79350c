// Package image brings images into the store: from registries, from archives, and as
// tarballs and disks from the web.
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

// Source says where an image comes from: Reference or, if that is zero, Download.
type Source struct {
	Reference oci.Reference    // in a registry, or in a local archive or layout
	Download  download.Request // of a file
	Kind      download.Kind    // format of that file; empty means Tar
	Version   string           // version of a local file, which may be replaced
}

// Name returns the name of the source in the store. It contains no credentials, but it
// differs if the credentials in the URL differ.
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

// String returns a text for people. It contains no credentials.
func (s Source) String() string {
	if s.Reference != (oci.Reference{}) {
		return s.Reference.String()
	}
	return s.Download.String()
}

// Policy says when an image is fetched or checked although the store has it.
type Policy string

// The policies.
const (
	Always  Policy = "always"
	Missing Policy = "missing"
	Never   Policy = "never" // it is an error if the store does not have the image
)

// Policies lists all policies.
var Policies = []string{string(Always), string(Missing), string(Never)}

// DefaultPolicy returns the policy for a source if the job sets none: as in docker, the
// tag "latest" is checked each time.
func (s Source) DefaultPolicy() Policy {
	if s.Reference.Tag == "latest" {
		return Always
	}
	return Missing
}

// Request is a request for an image.
type Request struct {
	Source   Source
	Policy   Policy
	Auth     *oci.Auth // credentials of the task; may be nil
	AuthSoft bool      // if the credentials are refused, continue without

	Inactivity time.Duration // how long the server may send nothing; 0: no limit
	// Progress is called with the number of bytes that have been read, and the total, or
	// -1 if that is unknown. Calls do not overlap. Progress may be nil.
	Progress func(done, total int64)
}

// Puller pulls images into a store.
type Puller struct {
	Store    store.Store
	Registry oci.Client
	Download download.Client // without Progress and Inactivity
	MaxBytes int64           // maximum size of the store; 0: no limit
}

// Pull returns an image in the store, after fetching it if necessary. However many calls,
// in this or other processes, need a layer from one origin, it is fetched once; calls for
// different origins never wait for each other. The image is not collected until release
// is called, so the caller acquires it before.
func (p Puller) Pull(ctx context.Context, r Request) (image store.Image, release func(), err error) {
	pull := p.Store.Begin()
	image, err = p.get(ctx, pull, r)
	if err == nil && len(image.Config) == 0 && image.Disk == "" { // the image itself says nothing about its platform
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
	budget, err := p.budget(ctx)
	if err != nil {
		return store.Image{}, err
	}
	if r.Source.Reference != (oci.Reference{}) {
		return p.pullOCI(ctx, pull, r, budget)
	}
	return p.pullFile(ctx, pull, r, budget)
}

// name returns the name of the image in the store. The name depends on the credentials:
// an image that one user may see is not visible to everybody who knows its name. The
// registry decides that for each user.
func (r Request) name() string {
	if r.Auth == nil {
		return r.Source.Name()
	}
	sum := sha256.Sum256([]byte(r.Auth.Username + "\x00" + r.Auth.Password))
	return r.Source.Name() + "#as-" + hex.EncodeToString(sum[:8])
}

// origin identifies where the image comes from, and with which credentials: tasks with
// the same origin would be equally slow, or fail in the same way.
func (r Request) origin() string {
	if r.Source.Reference.Path == "" && r.Source.Reference != (oci.Reference{}) {
		// Images of one repository share layers.
		r.Source.Reference.Tag, r.Source.Reference.Digest = "", ""
	}
	return r.name()
}

// lookup finds an image in the store and protects its layers from collection.
func (p Puller) lookup(ctx context.Context, pull *store.Pull, name string) (store.Image, error) {
	found, _, err := p.Store.Lookup(name)
	if err != nil {
		return store.Image{}, err
	}
	for _, digest := range found.Layers {
		absent := func(context.Context, string) error { return store.ErrNotFound } // it has just been collected
		if _, err := pull.Layer(ctx, digest, rand.Text(), absent); err != nil {
			return store.Image{}, err
		}
	}
	if found.Disk != "" {
		_, err = pull.Disk(ctx, found.Disk, rand.Text(), func(context.Context, *os.File) error { return store.ErrNotFound })
	}
	return found, err
}

// Temporary reports whether another attempt may succeed.
func Temporary(err error) bool { return errors.Is(err, fetch.ErrTemporary) }

// Config returns the configuration with which the image is to be run. A tarball has none.
func Config(image store.Image) (config oci.Config, err error) {
	if len(image.Config) == 0 {
		return config, nil
	}
	if err := json.Unmarshal(image.Config, &config); err != nil {
		return config, fmt.Errorf("read the config of image %s: %w", image.Digest, err)
	}
	return config, nil
}

// IsDownload reports whether name is the URL of a file on the web.
func IsDownload(name string) bool {
	return strings.HasPrefix(name, "https://") || strings.HasPrefix(name, "http://")
}
