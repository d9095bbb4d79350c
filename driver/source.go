package driver

import (
	"cmp"
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/hashicorp/nomad/plugins/drivers"
	"golang.org/x/sys/unix"

	"nomad-driver-nspawn/nspawn/image"
	"nomad-driver-nspawn/nspawn/image/download"
	"nomad-driver-nspawn/nspawn/image/oci"
)

// imageKind is what the option `image` names. It can be told by its form alone,
// so that a job means the same everywhere.
type imageKind int

const (
	machinedImage imageKind = iota // a name without /, : and @
	localTree                      // a directory by its path
	ociImage                       // of a registry, an archive or a layout
	tarballImage                   // an URL, or a file by its path
)

func (c TaskConfig) imageKind() imageKind {
	name := c.Image
	switch {
	case c.ImageDownload != nil && c.ImageDownload.URL != "", image.IsDownload(name):
		return tarballImage
	case filepath.IsAbs(name), taskPath(name):
		if kind, _, err := download.Format(name); err == nil && kind == download.Tar {
			return tarballImage
		}
		return localTree
	case strings.ContainsAny(name, "/:@"):
		return ociImage
	}
	return machinedImage
}

// taskPath says whether a name is of the task's directory, where an artifact may
// have put an image.
func taskPath(name string) bool {
	return strings.HasPrefix(name, "./") || strings.HasPrefix(name, "../") || strings.HasPrefix(name, "local/")
}

// stored says whether the image is run from the store.
func (c TaskConfig) stored() bool { return c.imageKind() == ociImage || c.imageKind() == tarballImage }

// ImageDownload is how a tarball from the web is found and verified. The older
// community driver has this block, too.
type ImageDownload struct {
	Force  bool   `codec:"force"`
	SHA256 string `codec:"sha256"`
	Type   string `codec:"type"`
	URL    string `codec:"url"`
	Verify string `codec:"verify"`
}

// Auth is how a task logs in to a registry.
type Auth struct {
	Username string `codec:"username"`
	Password string `codec:"password"`
}

// newSource is where an image of the store comes from, if the operator allows it.
func newSource(policy Config, task TaskConfig, cfg *drivers.TaskConfig) (image.Source, error) {
	if task.imageKind() == tarballImage {
		return newDownload(policy, task, cfg)
	}
	reference, err := oci.ParseReference(task.Image)
	if err != nil || reference.Path == "" {
		return image.Source{Reference: reference}, prefixed("image: ", err)
	}
	reference.Path, err = allowedPath(policy, reference.Path, cfg)
	return image.Source{Reference: reference, Version: version(reference.Path)}, prefixed("image: ", err)
}

func prefixed(prefix string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s%w", prefix, err)
}

// version tells a local image from another at the same path. Of a layout, it is
// that of its index. What cannot be looked at cannot be read either.
func version(path string) string {
	var stat unix.Stat_t
	if unix.Stat(filepath.Join(path, "index.json"), &stat) != nil && unix.Stat(path, &stat) != nil {
		return ""
	}
	return fmt.Sprintf("%d-%d-%d.%09d", stat.Ino, stat.Size, stat.Mtim.Sec, stat.Mtim.Nsec)
}

func newDownload(policy Config, task TaskConfig, cfg *drivers.TaskConfig) (source image.Source, err error) {
	request := download.Request{URL: task.Image}
	if d := task.ImageDownload; d != nil {
		if d.URL != "" {
			request.URL = d.URL
		}
		request.SHA256, request.Verify = d.SHA256, download.Verify(d.Verify)
	}
	if !image.IsDownload(request.URL) {
		if strings.Contains(request.URL, "://") { // it is not shown: it may hold a password
			return source, errors.New("image_download.url: want http://…, https://…, or a path")
		}
		// The operator vouches for it, or the artifact block.
		request.URL, err = allowedPath(policy, request.URL, cfg)
		request.Verify = cmp.Or(request.Verify, download.VerifyNo)
		return image.Source{Download: request, Version: version(request.URL)}, prefixed("image: ", err)
	}
	switch {
	case request.Verify == download.VerifyNo && request.SHA256 == "" && !policy.AllowUnverifiedImages:
		return source, errors.New(`image_download.verify: "no" takes whatever comes; ` +
			"the operator has to allow it with allow_unverified_images = true in the plugin's config, or the job give sha256")
	case request.Verify == "" && strings.HasPrefix(request.URL, "https://"):
		request.Verify = download.VerifyChecksum
	case request.Verify == "":
		request.Verify = download.VerifySignature // who changes the file can change its checksum
	}
	return image.Source{Download: request}, nil
}
