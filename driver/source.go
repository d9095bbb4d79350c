package driver

import (
	"cmp"
	"errors"
	"fmt"
	"net/url"
	"path"
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
	localImage                     // a directory, a raw disk or a block device by its path
	ociImage                       // of a registry, an archive or a layout
	fileImage                      // to be unpacked: a tarball or a disk, by its URL or path
)

func (c TaskConfig) imageKind() imageKind {
	name := c.Image
	switch {
	case c.ImageDownload != nil && c.ImageDownload.Type == dockerType:
		return ociImage
	case c.ImageDownload != nil && c.ImageDownload.URL != "", image.IsDownload(name):
		return fileImage
	case filepath.IsAbs(name), taskPath(name):
		kind, compression, err := download.Format(name)
		if err == nil && (kind != download.Raw || compression != "") {
			return fileImage
		}
		return localImage
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
func (c TaskConfig) stored() bool { return c.imageKind() == ociImage || c.imageKind() == fileImage }

// dockerType is a value of image_download.type: its URL is that of a registry's
// image, as image takes it.
const dockerType = "docker"

// ImageDownload is how a file from the web is found and verified. The older
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
	if task.imageKind() == fileImage {
		return newDownload(policy, task, cfg)
	}
	name := task.Image
	if d := task.ImageDownload; d != nil {
		name = cmp.Or(d.URL, name)
	}
	reference, err := oci.ParseReference(name)
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
	kind, err := fileKind(task, request.URL)
	if err != nil {
		return source, prefixed("image: ", err)
	}
	if kind != download.Tar && !filepath.IsAbs(request.URL) && !policy.AllowDiskImages {
		return source, errDiskImage
	}
	if !image.IsDownload(request.URL) {
		if strings.Contains(request.URL, "://") { // it is not shown: it may hold a password
			return source, errors.New("image_download.url: want http://…, https://…, or a path")
		}
		// The operator vouches for it, or the artifact block.
		request.URL, err = allowedPath(policy, request.URL, cfg)
		request.Verify = cmp.Or(request.Verify, download.VerifyNo)
		return image.Source{Download: request, Kind: kind, Version: version(request.URL)}, prefixed("image: ", err)
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
	return image.Source{Download: request, Kind: kind}, nil
}

// errDiskImage: file systems are made to be read from disks that one has written
// oneself. Kernels have had holes that a crafted one opens.
var errDiskImage = errors.New("image: a disk image of the web or of the task's directory has the kernel read a file system that anybody may have made; " +
	"the operator has to allow it with allow_disk_images = true in the plugin's config, or put the image below image_paths")

// fileKind tells what a file is by its name, or as the job names it.
func fileKind(task TaskConfig, address string) (download.Kind, error) {
	u, err := url.Parse(address)
	if err != nil { // which would show it
		return "", errors.New("the URL is malformed; special characters, in a password too, must be written as %XX")
	}
	var named download.Kind
	if task.ImageDownload != nil {
		named = download.Kind(task.ImageDownload.Type)
	}
	return download.KindOf(path.Base(u.Path), named)
}
