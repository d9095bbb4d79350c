package driver

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/hashicorp/nomad/plugins/drivers"
	"github.com/shoenig/test/must"

	"nomad-driver-nspawn/nspawn/image/download"
)

func TestImageKind(t *testing.T) {
	for name, want := range map[string]imageKind{
		"debian": machinedImage, "/srv/debian": localImage, "local/debian": localImage, "./debian": localImage,
		"alpine:3": ociImage, "docker://alpine": ociImage, "team/app": ociImage, "app@sha256:00": ociImage,
		"oci-archive:local/a.tar": ociImage, "https://example.org/a.tar.xz": fileImage, "/srv/a.tar.gz": fileImage,
		"local/a.tar": fileImage, "/srv/a.raw": localImage, "/srv/a.qcow2": fileImage, "local/a.raw.xz": fileImage, "/dev/vg/lv": localImage,
	} {
		must.Eq(t, want, TaskConfig{Image: name}.imageKind(), must.Sprint(name))
	}
}

// What was checked is what is read: a name with a colon is not cut again.
func TestNewSourceOfTask(t *testing.T) {
	cfg := &drivers.TaskConfig{Name: "web", AllocDir: t.TempDir()}
	local := cfg.TaskDir().LocalDir
	for _, dir := range []string{local, filepath.Join(cfg.TaskDir().Dir, "private")} {
		must.NoError(t, os.MkdirAll(dir, 0o755))
	}
	must.NoError(t, os.WriteFile(filepath.Join(local, "x:v1"), nil, 0o644))
	must.NoError(t, os.Symlink("/etc/passwd", filepath.Join(local, "x")))
	must.NoError(t, os.Symlink("x:v1", filepath.Join(local, "link")))
	dataDir := filepath.Join(t.TempDir(), "data") // an operator may have moved Nomad's, and linked it
	must.NoError(t, os.Symlink(cfg.AllocDir, dataDir))
	linked := &drivers.TaskConfig{Name: cfg.Name, AllocDir: dataDir}
	source, err := newSource(Config{}, TaskConfig{Image: "oci-archive:local/link:2"}, cfg)
	must.NoError(t, err)
	must.Eq(t, filepath.Join(local, "x:v1"), source.Reference.Path)
	must.Eq(t, "2", source.Reference.Tag)
	must.NotEq(t, "", source.Version)

	for image, want := range map[string]string{
		"oci-archive:local/x":        "is not in the task's directory",
		"oci-archive:../../x":        "",
		"oci:private":                "in private",
		"docker-archive:/etc/passwd": "image_paths",
		"oci-archive:local/missing":  "find local/missing on this client",
	} {
		for _, cfg := range []*drivers.TaskConfig{cfg, linked} {
			_, err := newSource(Config{}, TaskConfig{Image: image}, cfg)
			must.ErrorContains(t, err, want, must.Sprint(image))
		}
	}
}

func TestNewSourceOfTheWeb(t *testing.T) {
	cfg := &drivers.TaskConfig{Name: "web", AllocDir: t.TempDir()}
	for url, want := range map[string]download.Verify{
		"https://example.org/a.tar": download.VerifyChecksum,
		"http://example.org/a.tar":  download.VerifySignature,
	} {
		source, err := newSource(Config{}, TaskConfig{Image: url}, cfg)
		must.NoError(t, err)
		must.Eq(t, want, source.Download.Verify)
	}
	for _, url := range []string{"ftp://me:secret@example.org/a.tar", "HTTPS://me:secret@example.org/a.tar"} {
		_, err := newSource(Config{}, TaskConfig{Image: "x", ImageDownload: &ImageDownload{URL: url}}, cfg)
		must.ErrorContains(t, err, "image_download.url")
		must.StrNotContains(t, err.Error(), "secret")
	}
	unverified := TaskConfig{Image: "https://example.org/a.tar", ImageDownload: &ImageDownload{Verify: "no"}}
	_, err := newSource(Config{}, unverified, cfg)
	must.ErrorContains(t, err, "allow_unverified_images")
	_, err = newSource(Config{AllowUnverifiedImages: true}, unverified, cfg)
	must.NoError(t, err)
}
