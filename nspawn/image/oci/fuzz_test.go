package oci

import (
	"bytes"
	"context"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/shoenig/test/must"
)

// documents is a content in which all manifests are the same, and all blobs are the same.
type documents struct{ inner, config []byte }

func (d documents) manifest(context.Context, v1.Descriptor) ([]byte, error) { return d.inner, nil }

func (d documents) blob(context.Context, v1.Descriptor) (io.ReadCloser, error) {
	return io.NopCloser(bytes.NewReader(d.config)), nil
}

const (
	fuzzDigest = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
	fuzzConfig = `{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":["` + fuzzDigest + `"]},` +
		`"config":{"User":"1:1","Env":["A=b"],"Volumes":{"/a":{}},"Entrypoint":["sh"],"WorkingDir":"x"}}`
	fuzzManifest = `{"schemaVersion":2,"config":{"mediaType":"application/vnd.oci.image.config.v1+json","size":1,"digest":"` + fuzzDigest + `"},` +
		`"layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip","size":1,"digest":"` + fuzzDigest + `","urls":["http://a"]}]}`
	fuzzIndex = `{"schemaVersion":2,"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","size":1,"digest":"` + fuzzDigest + `",` +
		`"platform":{"os":"linux","architecture":"amd64","variant":"v3"}},{"digest":"` + fuzzDigest + `","platform":{"os":"unknown"}}]}`
)

// FuzzManifest resolves whatever a registry may send as an index, a manifest in it, and a
// config. If the result is an image, it must be complete.
func FuzzManifest(f *testing.F) {
	f.Add([]byte(fuzzManifest), []byte(""), []byte(fuzzConfig))
	f.Add([]byte(fuzzIndex), []byte(fuzzManifest), []byte(fuzzConfig))
	f.Add([]byte(fuzzIndex), []byte(fuzzIndex), []byte(`{}`))
	f.Add([]byte(`{"schemaVersion":1,"fsLayers":[]}`), []byte(`null`), []byte(`[]`))
	f.Add([]byte(strings.Replace(fuzzManifest, `"size":1`, `"size":-1`, -1)), []byte(`{`), []byte(`{"rootfs":{"diff_ids":[""]}}`))
	platform := v1.Platform{OS: "linux", Architecture: "amd64"}
	f.Fuzz(func(t *testing.T, top, inner, config []byte) {
		finder := finder{documents{inner, config}, platform}
		image, err := finder.find(t.Context(), top, v1.Hash{Algorithm: "sha256", Hex: fuzzDigest[7:]}, false, 0)
		if err != nil {
			must.LessEq(t, maxErrorText+100, len(fail("resolve", err).Error()))
			return
		}
		checkImage(t, image)
	})
}

// checkImage looks for values that later code does not expect.
func checkImage(t *testing.T, image *Image) {
	for _, l := range image.Layers {
		must.NotNil(t, l.open)
		must.GreaterEq(t, 0, l.Size)
		for _, digest := range []string{l.Digest, l.DiffID} {
			_, err := v1.NewHash(digest)
			must.NoError(t, err)
		}
	}
}

// FuzzArchive resolves whatever a task may write as an archive, in both formats.
func FuzzArchive(f *testing.F) {
	blob := "blobs/sha256/" + fuzzDigest[7:]
	f.Add(newTar(f, tarFile("manifest.json", `[{"Config":"c","Layers":["l"],"RepoTags":["a:b"]}]`), tarFile("c", fuzzConfig), tarFile("l", "")), true)
	f.Add(newTar(f, tarFile("index.json", fuzzIndex), tarFile(blob, fuzzManifest)), false)
	f.Add(newTar(f, tarFile("index.json", fuzzIndex), tarLink(blob, "index.json")), false)
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, data []byte, docker bool) {
		path := filepath.Join(dir, "archive")
		must.NoError(t, os.WriteFile(path, data, 0o600))
		transport := fromOCIArchive
		if docker {
			transport = fromDockerArchive
		}
		image, err := Client{Platform: "linux/amd64"}.Resolve(t.Context(), Reference{Transport: transport, Path: path}, nil, false)
		if err != nil {
			must.False(t, strings.Contains(err.Error(), "\n"))
			return
		}
		checkImage(t, image)
		for _, l := range image.Layers {
			blob, err := l.Open(t.Context())
			if err != nil {
				continue
			}
			n, _ := io.Copy(io.Discard, blob)
			must.LessEq(t, l.Size, n)
			must.NoError(t, blob.Close())
		}
	})
}
