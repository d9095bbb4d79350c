package oci

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	ocilayout "github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/shoenig/test/must"
)

// newLayout writes images to a layout directory. Each has a tag, unless that is empty.
func newLayout(t *testing.T, images map[string]v1.ImageIndex) string {
	t.Helper()
	dir := t.TempDir()
	l, err := ocilayout.Write(dir, newIndex(t, nil))
	must.NoError(t, err)
	for tag, index := range images {
		var opts []ocilayout.Option
		if tag != "" {
			opts = append(opts, ocilayout.WithAnnotations(map[string]string{annotationTag: tag}))
		}
		must.NoError(t, l.AppendIndex(index, opts...))
	}
	return dir
}

// tarOf returns an archive of a directory.
func tarOf(t *testing.T, dir string) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	must.NoError(t, w.AddFS(os.DirFS(dir)))
	must.NoError(t, w.Close())
	return buf.Bytes()
}

func TestLayouts(t *testing.T) {
	image := newImage(t, "linux/amd64", newLayer(t, "one"), newZstdLayer(t, "two"))
	other := newImage(t, "linux/arm64", newLayer(t, "other"))
	images := map[string]v1.Image{"linux/amd64": image, "linux/arm64": other}
	dir := newLayout(t, map[string]v1.ImageIndex{"v1": newIndex(t, images), "v2": newIndex(t, map[string]v1.Image{"linux/amd64": newImage(t, "linux/amd64")})})
	archive := writeFile(t, "app.tar", tarOf(t, dir), 0o644)
	c := client()
	for _, ref := range []Reference{
		{Transport: fromLayout, Path: dir},
		{Transport: fromOCIArchive, Path: archive},
	} {
		ref.Tag = "v1"
		requireSame(t, image, resolve(t, c, ref))
		must.Len(t, 0, resolve(t, c, Reference{Transport: ref.Transport, Path: ref.Path, Tag: "v2"}).Layers)
		_, err := c.Resolve(t.Context(), Reference{Transport: ref.Transport, Path: ref.Path}, nil, false)
		requireFailure(t, err, false, "several images, name one after a colon: v1, v2")
		_, err = c.Resolve(t.Context(), Reference{Transport: ref.Transport, Path: ref.Path, Tag: "v3"}, nil, false)
		requireFailure(t, err, false, `no image "v3", only ["v1" "v2"]`)
	}
	arm := Client{Platform: "linux/arm64"}
	requireSame(t, other, resolve(t, arm, Reference{Transport: fromLayout, Path: dir, Tag: "v1"}))
	_, err := arm.Resolve(t.Context(), Reference{Transport: fromLayout, Path: dir, Tag: "v2"}, nil, false)
	requireFailure(t, err, false, "no image for platform linux/arm64, only for linux/amd64")
}

// skopeo and Podman put an image directly into index.json, without a platform.
func TestLayoutOfSingleImage(t *testing.T) {
	image := newImage(t, "linux/amd64", newLayer(t, "one"))
	dir := newLayout(t, nil)
	l, err := ocilayout.FromPath(dir)
	must.NoError(t, err)
	must.NoError(t, l.AppendImage(image))
	ref := Reference{Transport: fromLayout, Path: dir}
	requireSame(t, image, resolve(t, client(), ref))
	_, err = Client{Platform: "linux/arm64"}.Resolve(t.Context(), ref, nil, false)
	requireFailure(t, err, false, "no image for platform linux/arm64, only for linux/amd64")
}

func TestHostileLayouts(t *testing.T) {
	image := newImage(t, "linux/amd64", newLayer(t, "one"))
	layers, err := image.Layers()
	must.NoError(t, err)
	digest, err := layers[0].Digest()
	must.NoError(t, err)
	manifest, err := image.Digest()
	must.NoError(t, err)
	secret := writeFile(t, "secret", []byte("hunter2"), 0o600)
	blob := func(dir string, h v1.Hash) string { return filepath.Join(dir, "blobs", h.Algorithm, h.Hex) }
	replace := func(path string, make func(path string) error) {
		must.NoError(t, os.Remove(path))
		must.NoError(t, make(path))
	}
	for name, c := range map[string]struct {
		spoil     func(dir string)
		temporary bool
		want      string
	}{
		"absent blob":     {func(dir string) { must.NoError(t, os.Remove(blob(dir, digest))) }, false, "no such file"},
		"absent manifest": {func(dir string) { must.NoError(t, os.Remove(blob(dir, manifest))) }, false, "no such file"},
		"link out of it": {func(dir string) {
			replace(blob(dir, digest), func(path string) error { return os.Symlink(secret, path) })
		}, false, "path escapes from parent"},
		"FIFO": {func(dir string) {
			replace(blob(dir, digest), func(path string) error { return syscall.Mkfifo(path, 0o600) })
		}, false, "is not a regular file"},
		"FIFO for index": {func(dir string) {
			replace(filepath.Join(dir, "index.json"), func(path string) error { return syscall.Mkfifo(path, 0o600) })
		}, false, "is not a regular file"},
		"large index": {func(dir string) {
			must.NoError(t, os.Truncate(filepath.Join(dir, "index.json"), maxDocument+1))
		}, false, "read index.json: larger than 4194304 bytes"},
		"no index": {func(dir string) {
			must.NoError(t, os.WriteFile(filepath.Join(dir, "index.json"), []byte(marshal(t, manifestOf(t, image))), 0o600))
		}, false, "index.json is not an index"},
		"other size": {func(dir string) { must.NoError(t, os.Truncate(blob(dir, digest), 3)) }, false, "has 3 bytes, not"},
		"other bytes": {func(dir string) {
			raw, err := os.ReadFile(blob(dir, digest))
			must.NoError(t, err)
			raw[9] ^= 1
			must.NoError(t, os.WriteFile(blob(dir, digest), raw, 0o600))
		}, false, "digest is sha256:"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := newLayout(t, map[string]v1.ImageIndex{"": newIndex(t, map[string]v1.Image{"linux/amd64": image})})
			c.spoil(dir)
			resolved, err := client().Resolve(t.Context(), Reference{Transport: fromLayout, Path: dir}, nil, false)
			if err == nil {
				_, err = readLayer(t.Context(), resolved.Layers[0])
			}
			requireFailure(t, err, c.temporary, c.want)
		})
	}
}

// newDockerArchive writes images with the library, whose layers are compressed with gzip.
func newDockerArchive(t *testing.T, images map[string]v1.Image) string {
	t.Helper()
	refs := map[name.Reference]v1.Image{}
	for tag, image := range images {
		ref, err := name.NewTag(tag)
		must.NoError(t, err)
		refs[ref] = image
	}
	path := filepath.Join(t.TempDir(), "app.tar")
	must.NoError(t, tarball.MultiRefWriteToFile(path, refs))
	return path
}

func TestDockerArchiveWithCompressedLayers(t *testing.T) {
	image := newImage(t, "linux/amd64", newLayer(t, "one"), newZstdLayer(t, "two"))
	other := newImage(t, "linux/amd64", newLayer(t, "three"))
	path := newDockerArchive(t, map[string]v1.Image{"app:1": image, "localhost/app:2": other})
	for tag, want := range map[string]v1.Image{"app:1": image, "docker.io/library/app:1": image, "localhost/app:2": other} {
		ref, err := ParseReference("docker-archive:" + path + ":" + tag)
		must.NoError(t, err)
		got := resolve(t, client(), ref)
		id, err := want.ConfigName()
		must.NoError(t, err)
		must.Eq(t, id.String(), got.Digest)
		requireSameContent(t, want, got)
	}
	_, err := client().Resolve(t.Context(), Reference{Transport: fromDockerArchive, Path: path}, nil, false)
	requireFailure(t, err, false, "2 images, name one after a colon: docker.io/library/app:1, localhost/app:2")
	_, err = client().Resolve(t.Context(), Reference{Transport: fromDockerArchive, Path: path, Tag: "docker.io/library/app:3"}, nil, false)
	requireFailure(t, err, false, `no image docker.io/library/app:3, only ["docker.io/library/app:1" "localhost/app:2"]`)
	_, err = Client{Platform: "linux/arm64"}.Resolve(t.Context(), Reference{Transport: fromDockerArchive, Path: path, Tag: "localhost/app:2"}, nil, false)
	requireFailure(t, err, false, "no image for platform linux/arm64, only for linux/amd64")
}

func tarLink(name, target string) tarEntry {
	return tarEntry{tar.Header{Name: name, Linkname: target, Typeflag: tar.TypeSymlink, Mode: 0o777}, ""}
}

// savedTar returns what docker save writes before Docker 25: plain layers, and links for
// layers that occur twice.
func savedTar(t *testing.T, image v1.Image, extra ...tarEntry) []byte {
	t.Helper()
	config, err := image.RawConfigFile()
	must.NoError(t, err)
	layers, err := image.Layers()
	must.NoError(t, err)
	saved := savedImage{Config: "config.json"}
	entries := []tarEntry{tarFile("config.json", string(config))}
	for i, layer := range layers {
		r, err := layer.Uncompressed()
		must.NoError(t, err)
		raw, err := io.ReadAll(r)
		must.NoError(t, err)
		saved.Layers = append(saved.Layers, fmt.Sprintf("%d/layer.tar", i))
		entries = append(entries, tarFile(fmt.Sprintf("./%d-data/layer.tar", i), string(raw)), tarLink(fmt.Sprintf("%d/layer.tar", i), fmt.Sprintf("../%d-data/layer.tar", i)))
	}
	entries = append(entries, tarFile("manifest.json", marshal(t, []savedImage{saved})))
	return newTar(t, append(entries, extra...)...)
}

func TestDockerArchiveWithPlainLayersAndLinks(t *testing.T) {
	image := newImage(t, "linux/amd64", newLayer(t, "one"), newLayer(t, strings.Repeat("two", 100_000)))
	path := writeFile(t, "app.tar", savedTar(t, image), 0o644)
	got := resolve(t, client(), Reference{Transport: fromDockerArchive, Path: path})
	layers, err := image.Layers()
	must.NoError(t, err)
	for i, layer := range layers {
		must.Eq(t, got.Layers[i].DiffID, got.Layers[i].Digest)
		requireSameBytes(t, layer.Uncompressed, got.Layers[i])
	}
}

// The layers are read from the archive as it is at that time.
func TestDockerArchiveChangedMeanwhile(t *testing.T) {
	image := newImage(t, "linux/amd64", newLayer(t, "one"))
	raw := savedTar(t, image)
	path := writeFile(t, "app.tar", raw, 0o644)
	layer := resolve(t, client(), Reference{Transport: fromDockerArchive, Path: path}).Layers[0]
	must.NoError(t, os.WriteFile(path, bytes.ReplaceAll(raw, []byte("one"), []byte("two")), 0o644))
	_, err := readLayer(t.Context(), layer)
	requireFailure(t, err, false, "digest is sha256:")
}

func TestHostileArchives(t *testing.T) {
	image := newImage(t, "linux/amd64", newLayer(t, "one"))
	good := savedTar(t, image)
	secret := writeFile(t, "secret", []byte(`[{"Config":"a"}]`), 0o600)
	var zipped bytes.Buffer
	w := gzip.NewWriter(&zipped)
	_, err := w.Write(good)
	must.NoError(t, err)
	must.NoError(t, w.Close())
	many := make([]tarEntry, maxEntries+1)
	for i := range many {
		many[i] = tarFile(fmt.Sprint(i), "")
	}
	for want, raw := range map[string][]byte{
		"archive has two entries manifest.json":            savedTar(t, image, tarFile("./manifest.json", "[]")),
		"archive has two entries config.json":              savedTar(t, image, tarLink("config.json", "manifest.json")),
		`bad name "../x"`:                                  savedTar(t, image, tarFile("../x", "")),
		`bad name "a/../../x"`:                             savedTar(t, image, tarFile("a/../../x", "")),
		`bad name "/x"`:                                    savedTar(t, image, tarFile("/x", "")),
		`bad name "xxxx`:                                   savedTar(t, image, tarFile(strings.Repeat("x", maxNameLength+1), "")),
		"archive has more than 10000 entries":              newTar(t, many...),
		"/secret in the archive: file does not exist":      newTar(t, tarLink("manifest.json", secret)),
		"no file a in the archive":                         newTar(t, tarLink("manifest.json", "a"), tarLink("a", "manifest.json")),
		"no file manifest.json in":                         nil,
		"if it is compressed, decompress it first":         zipped.Bytes(),
		"archive is truncated in manifest.json":            good[:len(good)-3*512],
		"parse manifest.json":                              newTar(t, tarFile("manifest.json", "{}")),
		"read manifest.json: larger than 4194304 bytes":    newTar(t, tarFile("manifest.json", strings.Repeat(" ", maxDocument+1))),
		"0 images, name one":                               newTar(t, tarFile("manifest.json", "[]")),
		"malformed name":                                   newTar(t, tarFile("manifest.json", `[{"RepoTags":["A"]},{}]`)),
		"no file ../../etc/shadow":                         newTar(t, tarFile("manifest.json", `[{"Config":"../../etc/shadow"}]`)),
		"config has 0 diff IDs for 1 layers":               newTar(t, tarFile("c", `{}`), tarFile("manifest.json", `[{"Config":"c","Layers":["a"]}]`)),
		"parse config":                                     newTar(t, tarFile("c", `[]`), tarFile("manifest.json", `[{"Config":"c"}]`)),
		"no file gone in the archive: file does not exist": newTar(t, tarFile("c", `{"rootfs":{"diff_ids":["`+someDigest+`"]}}`), tarFile("manifest.json", `[{"Config":"c","Layers":["gone"]}]`)),
	} {
		path := writeFile(t, "app.tar", raw, 0o644)
		_, err := client().Resolve(t.Context(), Reference{Transport: fromDockerArchive, Path: path}, nil, false)
		requireFailure(t, err, false, want)
	}
}

func TestPaths(t *testing.T) {
	for _, transport := range []string{fromLayout, fromOCIArchive, fromDockerArchive} {
		_, err := client().Resolve(t.Context(), Reference{Transport: transport, Path: "app"}, nil, false)
		requireFailure(t, err, false, "path is not absolute")
		_, err = client().Resolve(t.Context(), Reference{Transport: transport, Path: "/does/not/exist"}, nil, false)
		must.ErrorIs(t, err, fs.ErrNotExist)
	}
	fifo := filepath.Join(t.TempDir(), "fifo")
	must.NoError(t, syscall.Mkfifo(fifo, 0o600))
	_, err := client().Resolve(t.Context(), Reference{Transport: fromOCIArchive, Path: fifo}, nil, false)
	requireFailure(t, err, false, "is not a regular file")
}

func TestArchiveEndsWithContext(t *testing.T) {
	path := writeFile(t, "app.tar", savedTar(t, newImage(t, "linux/amd64", newLayer(t, "one"))), 0o644)
	ref := Reference{Transport: fromDockerArchive, Path: path}
	image := resolve(t, client(), ref)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := client().Resolve(ctx, ref, nil, false)
	must.ErrorIs(t, err, context.Canceled)
	_, err = readLayer(ctx, image.Layers[0])
	must.ErrorIs(t, err, context.Canceled)
}
