package job

import (
	"strings"
	"testing"

	"github.com/shoenig/test/must"

	"nomad-driver-nspawn/driver/operator"
	"nomad-driver-nspawn/nspawn/image/download"
	"nomad-driver-nspawn/nspawn/paths"
)

func taskOf(image string) TaskConfig { return TaskConfig{imageOptions: imageOptions{Image: image}} }

func TestImageKind(t *testing.T) {
	for name, want := range map[string]ImageKind{
		"debian": MachinedImage, "/srv/debian": LocalImage, "local/debian": LocalImage, "./debian": LocalImage,
		"alpine:3": OCIImage, "docker://alpine": OCIImage, "team/app": OCIImage, "app@sha256:00": OCIImage,
		"oci-archive:local/a.tar": OCIImage, "https://example.org/a.tar.xz": FileImage, "/srv/a.tar.gz": FileImage,
		"local/a.tar": FileImage, "/srv/a.raw": LocalImage, "/srv/a.qcow2": FileImage, "local/a.raw.xz": FileImage, "/dev/vg/lv": LocalImage,
	} {
		must.Eq(t, want, taskOf(name).ImageKind(), must.Sprint(name))
	}
}

func TestSourceOfTheWeb(t *testing.T) {
	for url, want := range map[string]download.Verify{
		"https://example.org/a.tar": download.VerifyChecksum,
		"http://example.org/a.tar":  download.VerifySignature,
	} {
		source, err := taskOf(url).Source(operator.Policy{})
		must.NoError(t, err)
		must.Eq(t, want, source.Download.Verify)
	}
	for _, url := range []string{"ftp://me:secret@example.org/a.tar", "HTTPS://me:secret@example.org/a.tar"} {
		_, err := TaskConfig{imageOptions: imageOptions{Image: "x", ImageDownload: &ImageDownload{URL: url}}}.Source(operator.Policy{})
		must.ErrorContains(t, err, "image_download.url")
		must.StrNotContains(t, err.Error(), "secret")
	}
	unverified := TaskConfig{imageOptions: imageOptions{Image: "https://example.org/a.tar", ImageDownload: &ImageDownload{Verify: "no"}}}
	_, err := unverified.Source(operator.Policy{})
	must.ErrorContains(t, err, "allow_unverified_images")
	_, err = unverified.Source(parseConfig(t, "allow_unverified_images = true").Policy("default"))
	must.NoError(t, err)
}

func TestAllowedImages(t *testing.T) {
	config := parseConfig(t, `allowed_images = [
		"docker.io/library", "registry.example.org:5000", "ghcr.io/team/app/",
		"https://images.example.org/debian/", "http://Example.org:80", "/srv/images"
	]
	allow_unverified_images = true`)
	must.NoError(t, config.Validate())
	policy := config.Policy("default")
	for name, allowed := range map[string]bool{
		"alpine:3": true,
		"docker.io/library/alpine@sha256:" + strings.Repeat("0", 64): true,
		"docker.io/libraryx/alpine:3":                                false,
		"team/app:1":                                                 false,
		"registry.example.org:5000/a/b:1":                            true,
		"registry.example.org/a:1":                                   false,
		"registry.example.org.evil.org:5000/a":                       false,
		"ghcr.io/team/app:1":                                         true,
		"ghcr.io/team/app/sub:1":                                     true,
		"ghcr.io/team/apple:1":                                       false,
		"https://images.example.org/debian/12/a.tar.xz":              true,
		"https://images.example.org:443/debian/a.tar.xz":             true,
		"https://IMAGES.example.org/debian/a.tar.xz":                 true,
		"http://images.example.org/debian/a.tar.xz":                  false,
		"https://images.example.org/debianx/a.tar.xz":                false,
		"https://images.example.org/debian/../a.tar.xz":              false,
		"https://images.example.org/debian/%2e%2e/a.tar.xz":          false,
		"https://images.example.org/debian%2fa.tar.xz":               false,
		"https://images.example.org@evil.org/debian/a.tar.xz":        false,
		"https://me:secret@images.example.org/debian/a.tar.xz":       true,
		"https://images.example.org.evil.org/debian/a.tar.xz":        false,
		"http://example.org/any/a.tar.xz":                            true,
	} {
		_, err := taskOf(name).Source(policy)
		if allowed {
			must.NoError(t, err, must.Sprint(name))
		} else {
			must.ErrorContains(t, err, "allowed_images", must.Sprint(name))
			must.StrNotContains(t, err.Error(), "secret")
		}
	}
	below := func(path string) func(string) bool { return func(dir string) bool { return paths.Within(dir, path) } }
	must.NoError(t, policy.NamedImage("debian", below("/srv/images/debian")))
	must.ErrorContains(t, policy.NamedImage("debian", below("/var/lib/machines/debian")), "allowed_images")
	must.ErrorContains(t, policy.ImagePath("/srv/images/a", below("/srv/images/a")), "image_paths")
	must.ErrorContains(t, policy.ImagePath("/var/lib/machines/a", below("/var/lib/machines/a")), "allowed_images")
	must.ErrorContains(t, policy.TaskImage("local/a.tar"), "allowed_images")
	must.NoError(t, parseConfig(t, `allowed_images = ["local"]`).Policy("").TaskImage("local/a.tar"))
	must.NoError(t, operator.DefaultConfig().Policy("").WebImage(download.Request{URL: "https://example.org/a//b.tar"}))
}
