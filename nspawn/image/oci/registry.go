package oci

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

// maxStreams is the number of layers of an image that can be open at the same time. By
// default, the library would block the fifth; the caller decides how many it reads.
const maxStreams = 1000

// source is a repository in a registry or in a mirror of it.
type source struct {
	repository name.Repository
	puller     *remote.Puller // logs in with the first request
	fallback   bool           // the same as the source before it, but anonymous
}

// sources lists the repositories from which an image can be fetched, in order of
// preference.
type sources []source

func (c Client) pull(ctx context.Context, ref Reference, platform v1.Platform, auth *Auth, soft bool) (*Image, error) {
	from, err := c.sources(ref, auth, soft)
	if err != nil {
		return nil, err
	}
	return first(ctx, from, func(from sources) (*Image, error) {
		top, err := from.get(ctx, ref)
		if err != nil {
			return nil, err
		}
		return finder{from, platform}.find(ctx, top.Manifest, top.Digest, false, 0)
	})
}

// sources returns the mirrors of a reference's registry, and then the registry itself.
// With soft, each of them is followed by itself without credentials.
func (c Client) sources(ref Reference, auth *Auth, soft bool) (sources, error) {
	transport, err := newRetryTransport(c.CAFile, c.PlainHTTP)
	if err != nil {
		return nil, err
	}
	var all sources
	add := func(place string, auth *Auth) error {
		repository, err := repositoryAt(place, ref.Repository)
		if err != nil {
			return err
		}
		keychain := credentials{task: auth, config: c.DockerConfig, soft: soft}
		puller, err := c.puller(transport, remote.WithAuthFromKeychain(keychain))
		if err != nil {
			return err
		}
		all = append(all, source{repository, puller, false})
		if !soft {
			return nil
		}
		if puller, err = c.puller(transport); err != nil {
			return err
		}
		all = append(all, source{repository, puller, true})
		return nil
	}
	for _, mirror := range c.Mirrors[ref.Registry] {
		if err := add(mirror, nil); err != nil {
			return nil, fmt.Errorf("use mirror %q: %w", mirror, err)
		}
	}
	if err := add(ref.Registry, auth); err != nil {
		return nil, err
	}
	return all, nil
}

// repositoryAt returns the repository at a host[:port] with an optional path.
func repositoryAt(place, repository string) (name.Repository, error) {
	host, _, _ := strings.Cut(place, "/")
	if !registryPattern.MatchString(host) || !strings.ContainsAny(host, ".:") && host != "localhost" {
		return name.Repository{}, fmt.Errorf("%q is not a HOST[:PORT]", host)
	}
	return name.NewRepository(place + "/" + repository)
}

// puller returns a puller that leaves retries to the transport, because the retries of
// the library respect neither contexts nor Retry-After.
func (c Client) puller(transport *retryTransport, auth ...remote.Option) (*remote.Puller, error) {
	return remote.NewPuller(append(auth,
		remote.WithTransport(transport),
		remote.WithUserAgent(c.UserAgent),
		remote.WithJobs(maxStreams),
		remote.WithRetryBackoff(remote.Backoff{Steps: 1}),
		remote.WithRetryPredicate(func(error) bool { return false }),
		remote.WithRetryStatusCodes(),
	)...)
}

// first asks one source after another until one answers. ask receives the source and
// those after it. If no source answers, the error is the error of the last one, which is
// the registry itself, and includes the errors of the others.
func first[T any](ctx context.Context, from sources, ask func(sources) (T, error)) (T, error) {
	var none T
	var last error
	var before []string
	for i, s := range from {
		if s.fallback && i > 0 && !refused(last) {
			continue
		}
		if last != nil {
			before = append(before, describe(last))
		}
		answer, err := ask(from[i:])
		if err == nil {
			return answer, nil
		}
		if ctx.Err() != nil {
			return none, err
		}
		last = err
	}
	if len(before) > 0 {
		last = fmt.Errorf("%w (before: %s)", last, strings.Join(before, "; "))
	}
	return none, last
}

// get returns the manifest or index of a reference from the first source.
func (s sources) get(ctx context.Context, ref Reference) (*remote.Descriptor, error) {
	if ref.Digest != "" {
		return s[0].puller.Get(ctx, s[0].repository.Digest(ref.Digest))
	}
	return s[0].puller.Get(ctx, s[0].repository.Tag(ref.Tag))
}

func (s sources) manifest(ctx context.Context, d v1.Descriptor) ([]byte, error) {
	got, err := s[0].puller.Get(ctx, s[0].repository.Digest(d.Digest.String()))
	if err != nil {
		return nil, err
	}
	return got.Manifest, nil
}

// blob opens a blob at the first source that has it. A mirror may have a manifest but not
// its blobs.
func (s sources) blob(ctx context.Context, d v1.Descriptor) (io.ReadCloser, error) {
	return first(ctx, s, func(s sources) (io.ReadCloser, error) {
		layer, err := s[0].puller.Layer(ctx, s[0].repository.Digest(d.Digest.String()))
		if err != nil {
			return nil, err
		}
		blob, err := layer.Compressed()
		if err != nil {
			return nil, err
		}
		return sized(ctx, blob, d), nil
	})
}
