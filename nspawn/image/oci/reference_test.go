package oci

import (
	"errors"
	"strings"
	"testing"

	"github.com/shoenig/test/must"
)

const someDigest = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

func TestParseReference(t *testing.T) {
	for s, want := range map[string]Reference{
		"alpine":                           {Transport: "docker", Registry: "docker.io", Repository: "library/alpine", Tag: "latest"},
		"alpine:3":                         {Transport: "docker", Registry: "docker.io", Repository: "library/alpine", Tag: "3"},
		"docker://alpine":                  {Transport: "docker", Registry: "docker.io", Repository: "library/alpine", Tag: "latest"},
		"index.docker.io/team/app":         {Transport: "docker", Registry: "docker.io", Repository: "team/app", Tag: "latest"},
		"registry.example.org:5000/a/b:1":  {Transport: "docker", Registry: "registry.example.org:5000", Repository: "a/b", Tag: "1"},
		"localhost/app":                    {Transport: "docker", Registry: "localhost", Repository: "app", Tag: "latest"},
		"[::1]:5000/app":                   {Transport: "docker", Registry: "[::1]:5000", Repository: "app", Tag: "latest"},
		"app@" + someDigest:                {Transport: "docker", Registry: "docker.io", Repository: "library/app", Digest: someDigest},
		"app:1.2@" + someDigest:            {Transport: "docker", Registry: "docker.io", Repository: "library/app", Digest: someDigest},
		"oci:/srv/layout":                  {Transport: "oci", Path: "/srv/layout"},
		"oci:/srv/layout:v1":               {Transport: "oci", Path: "/srv/layout", Tag: "v1"},
		"oci-archive:/srv/app.tar":         {Transport: "oci-archive", Path: "/srv/app.tar"},
		"docker-archive:/srv/app.tar":      {Transport: "docker-archive", Path: "/srv/app.tar"},
		"docker-archive:app.tar:app":       {Transport: "docker-archive", Path: "app.tar", Tag: "docker.io/library/app:latest"},
		"docker-archive:/a:localhost/b:1":  {Transport: "docker-archive", Path: "/a", Tag: "localhost/b:1"},
		"quay.io/a_b/c__d/e-f--g.h:T_a.g-": {Transport: "docker", Registry: "quay.io", Repository: "a_b/c__d/e-f--g.h", Tag: "T_a.g-"},
	} {
		got, err := ParseReference(s)
		must.NoError(t, err, must.Sprint(s))
		must.Eq(t, want, got, must.Sprint(s))
		again, err := ParseReference(got.String())
		must.NoError(t, err, must.Sprint(s))
		must.Eq(t, got, again, must.Sprint(s))
	}
}

func TestParseReferenceRefuses(t *testing.T) {
	for s, want := range map[string]string{
		"":                                  "want [REGISTRY/]REPOSITORY",
		"Alpine":                            "in lower case",
		"https://example.org/app":           "want [REGISTRY/]REPOSITORY",
		"example.org/../app":                `"../app" is not the name of a repository`,
		"./app":                             `"." is not a HOST`,
		"example.org/a//b":                  "not the name of a repository",
		"app@sha256:12":                     "want [REGISTRY/]REPOSITORY",
		"app@sha384:" + someDigest[7:]:      "want [REGISTRY/]REPOSITORY",
		strings.Repeat("a", 250):            "not the name of a repository", // it is too long with library/
		"app:tag:tag":                       "in lower case",
		"app:":                              "want [REGISTRY/]REPOSITORY",
		"oci:":                              "want oci:PATH[:TAG]",
		"oci:/a:":                           "nothing after the last colon",
		"oci-archive:/a\x00b":               "want oci-archive:PATH[:TAG]",
		"docker-archive:/a:B":               "in lower case",
		"docker-archive:/a:b@" + someDigest: "have no digest",
	} {
		_, err := ParseReference(s)
		must.ErrorContains(t, err, want, must.Sprint(s))
		must.False(t, errors.Is(err, ErrTemporary))
	}
}

func TestParseReferenceHidesPasswords(t *testing.T) {
	for _, s := range []string{
		"docker://me:hunter2@example.org/app",
		"me:hunter2@example.org/app@" + someDigest,
		"me:hunter2@sha.example.org/app@" + someDigest,
	} {
		_, err := ParseReference(s)
		must.ErrorContains(t, err, "parse image reference")
		must.False(t, strings.Contains(err.Error(), "hunter2"), must.Sprint(err))
	}
}

func FuzzParseReference(f *testing.F) {
	for _, s := range []string{
		"alpine", "registry.example.org:5000/team/app:1.2", "app@" + someDigest, "docker://a/b:c", "[::1]:1/a",
		"oci:/a:b", "oci-archive:/a", "docker-archive:/a:b/c:d", "docker-archive:/a:b@c", "a:b@" + someDigest, "@", ":", "/", "",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		ref, err := ParseReference(s)
		if err != nil {
			return
		}
		again, err := ParseReference(ref.String())
		must.NoError(t, err)
		must.Eq(t, ref, again)
		must.True(t, (ref.Path == "") == (ref.Repository != ""))
	})
}
