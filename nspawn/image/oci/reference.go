package oci

import (
	"errors"
	"fmt"
	"regexp"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// The transports of a reference, with the same names as in skopeo
// (containers-transports(5)).
const (
	fromRegistry      = "docker"
	fromLayout        = "oci"
	fromOCIArchive    = "oci-archive"
	fromDockerArchive = "docker-archive"
)

// dockerHub is the common name of the registry that package name calls
// name.DefaultRegistry.
const dockerHub = "docker.io"

// maxRepository limits the name of a repository, in bytes. The library checks the same
// limit before it adds library/ to the name.
const maxRepository = 255

var (
	// OCI distribution spec 1.1, "Pulling manifests", and in addition the repeated
	// separators that Docker allows.
	repositoryPattern = regexp.MustCompile(`^[a-z0-9]+(([._]|__|-+)[a-z0-9]+)*(/[a-z0-9]+(([._]|__|-+)[a-z0-9]+)*)*$`)

	registryPattern = regexp.MustCompile(`^([a-zA-Z0-9]([a-zA-Z0-9.-]*[a-zA-Z0-9])?|\[[0-9a-fA-F:]+\])(:[0-9]+)?$`)
)

// Reference says where an image is. It has either Registry, Repository, and one of Tag
// and Digest, or Path.
type Reference struct {
	Transport  string // docker, oci, oci-archive or docker-archive
	Registry   string // such as docker.io or registry.example.org:5000
	Repository string // such as library/alpine
	Tag        string // in a docker-archive, the full name, such as docker.io/library/alpine:3
	Digest     string // such as sha256:…
	Path       string // path of the archive or layout directory
}

// ParseReference parses the name of an image:
//
//	[docker://][REGISTRY/]REPOSITORY[:TAG|@DIGEST]
//	oci:PATH[:TAG]
//	oci-archive:PATH[:TAG]
//	docker-archive:PATH[:[REGISTRY/]REPOSITORY[:TAG]]
//
// The registry defaults to docker.io, and the tag to latest. A tag together with a digest
// is dropped, because the digest decides. A path cannot contain a colon.
func ParseReference(s string) (Reference, error) {
	ref, err := parse(s)
	if err != nil {
		return Reference{}, fail(fmt.Sprintf("parse image reference %q", withoutUser(s)), err)
	}
	return ref, nil
}

// withoutUser hides a user and password, user:password@host, that someone may have
// written. An @ before a digest is not affected.
func withoutUser(s string) string {
	_, after, found := strings.Cut(s, "@")
	if !found || strings.HasPrefix(after, "sha") && !strings.Contains(after, "@") {
		return s
	}
	return "…@" + after[strings.LastIndex(after, "@")+1:]
}

func parse(s string) (Reference, error) {
	if named, ok := strings.CutPrefix(s, fromRegistry+"://"); ok {
		return parseName(named)
	}
	transport, rest, _ := strings.Cut(s, ":")
	switch transport {
	case fromLayout, fromOCIArchive, fromDockerArchive:
		return parsePath(transport, rest)
	}
	return parseName(s)
}

func parseName(s string) (Reference, error) {
	parsed, err := name.ParseReference(s)
	if err != nil { // its text repeats s, so it is not passed on
		return Reference{}, errors.New("want [REGISTRY/]REPOSITORY[:TAG|@DIGEST], the repository in lower case")
	}
	ref := Reference{
		Transport:  fromRegistry,
		Registry:   parsed.Context().RegistryStr(),
		Repository: parsed.Context().RepositoryStr(),
	}
	if ref.Registry == name.DefaultRegistry {
		ref.Registry = dockerHub
	}
	if !registryPattern.MatchString(ref.Registry) {
		return Reference{}, fmt.Errorf("%q is not a HOST[:PORT]", ref.Registry)
	}
	if len(ref.Repository) > maxRepository || !repositoryPattern.MatchString(ref.Repository) {
		return Reference{}, fmt.Errorf("%q is not the name of a repository", ref.Repository)
	}
	if _, ok := parsed.(name.Tag); ok {
		ref.Tag = parsed.Identifier()
		return ref, nil
	}
	ref.Digest = parsed.Identifier()
	if _, err := v1.NewHash(ref.Digest); err != nil {
		return Reference{}, err
	}
	return ref, nil
}

func parsePath(transport, s string) (Reference, error) {
	path, tag, tagged := strings.Cut(s, ":")
	if path == "" || strings.ContainsRune(s, 0) {
		return Reference{}, fmt.Errorf("want %s:PATH[:TAG]", transport)
	}
	if tagged && tag == "" {
		return Reference{}, errors.New("nothing after the last colon")
	}
	if tagged && transport == fromDockerArchive {
		named, err := parseName(tag)
		if err != nil {
			return Reference{}, err
		}
		if named.Digest != "" {
			return Reference{}, errors.New("images of a docker-archive have no digest")
		}
		tag = named.fullName()
	}
	return Reference{Transport: transport, Path: path, Tag: tag}, nil
}

// String returns the full reference. Parsing it returns the same reference.
func (r Reference) String() string {
	if r.Path == "" {
		return r.fullName()
	}
	if r.Tag == "" {
		return r.Transport + ":" + r.Path
	}
	return r.Transport + ":" + r.Path + ":" + r.Tag
}

func (r Reference) fullName() string {
	if r.Digest != "" {
		return r.Registry + "/" + r.Repository + "@" + r.Digest
	}
	return r.Registry + "/" + r.Repository + ":" + r.Tag
}
