package driver

import (
	"cmp"
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/hashicorp/nomad/plugins/drivers"

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

// archives are the transports of local OCI images, followed by a path.
var archives = []string{"oci:", "oci-archive:", "docker-archive:"}

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
		request, err := newDownload(policy, task, cfg)
		return image.Source{Download: request}, err
	}
	name, err := localArchive(policy, task.Image, cfg)
	if err != nil {
		return image.Source{}, err
	}
	reference, err := oci.ParseReference(name)
	if err != nil {
		return image.Source{}, fmt.Errorf("image: %w", err)
	}
	return image.Source{Reference: reference}, nil
}

// localArchive makes the path of an archive absolute. Like a tree it must be
// below the operator's directories, or in the task's own.
func localArchive(policy Config, name string, cfg *drivers.TaskConfig) (string, error) {
	for _, transport := range archives {
		rest, ok := strings.CutPrefix(name, transport)
		if !ok {
			continue
		}
		path, tag, tagged := strings.Cut(rest, ":")
		path, err := allowedPath(policy, path, cfg)
		if err != nil {
			return "", fmt.Errorf("image: %w", err)
		}
		if tagged {
			path += ":" + tag
		}
		return transport + path, nil
	}
	return name, nil
}

func newDownload(policy Config, task TaskConfig, cfg *drivers.TaskConfig) (download.Request, error) {
	request := download.Request{URL: task.Image}
	if d := task.ImageDownload; d != nil {
		if d.URL != "" {
			request.URL = d.URL
		}
		request.SHA256, request.Verify = d.SHA256, download.Verify(d.Verify)
	}
	if !image.IsDownload(request.URL) {
		// The operator vouches for it, or the artifact block.
		path, err := allowedPath(policy, request.URL, cfg)
		if err != nil {
			return request, fmt.Errorf("image: %w", err)
		}
		request.URL, request.Verify = path, cmp.Or(request.Verify, download.VerifyNo)
		return request, nil
	}
	switch {
	case request.Verify == download.VerifyNo && request.SHA256 == "" && !policy.AllowUnverifiedImages:
		return request, errors.New(`image_download.verify: "no" takes whatever comes; ` +
			"the operator has to allow it with allow_unverified_images = true in the plugin's config, or the job give sha256")
	case request.Verify == "" && strings.HasPrefix(request.URL, "https://"):
		request.Verify = download.VerifyChecksum
	case request.Verify == "":
		request.Verify = download.VerifySignature // who changes the file can change its checksum
	}
	return request, nil
}
