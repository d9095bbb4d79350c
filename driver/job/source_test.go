package job

import (
	"testing"

	"github.com/shoenig/test/must"

	"nomad-driver-nspawn/nspawn/image/download"
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
		source, err := taskOf(url).Source(Policy{})
		must.NoError(t, err)
		must.Eq(t, want, source.Download.Verify)
	}
	for _, url := range []string{"ftp://me:secret@example.org/a.tar", "HTTPS://me:secret@example.org/a.tar"} {
		_, err := TaskConfig{imageOptions: imageOptions{Image: "x", ImageDownload: &ImageDownload{URL: url}}}.Source(Policy{})
		must.ErrorContains(t, err, "image_download.url")
		must.StrNotContains(t, err.Error(), "secret")
	}
	unverified := TaskConfig{imageOptions: imageOptions{Image: "https://example.org/a.tar", ImageDownload: &ImageDownload{Verify: "no"}}}
	_, err := unverified.Source(Policy{})
	must.ErrorContains(t, err, "allow_unverified_images")
	_, err = unverified.Source(Config{policyOptions: policyOptions{AllowUnverifiedImages: ptr(true)}}.Policy("default"))
	must.NoError(t, err)
}
