package job

import (
	"fmt"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"nomad-driver-nspawn/driver/schema"
	"nomad-driver-nspawn/nspawn/image"
	"nomad-driver-nspawn/nspawn/image/download"
	"nomad-driver-nspawn/nspawn/image/oci"
	"nomad-driver-nspawn/nspawn/machine"
	"nomad-driver-nspawn/nspawn/paths"
)

type imageOptions struct {
	Auth          *Auth          `codec:"auth"`
	AuthSoftFail  bool           `codec:"auth_soft_fail"`
	Image         string         `codec:"image"`
	ImageDownload *ImageDownload `codec:"image_download"`
	ImagePolicy   string         `codec:"image_policy"`
	PullPolicy    string         `codec:"pull_policy"`
}

// Auth has the credentials of a task for a registry.
type Auth struct {
	Username string `codec:"username"`
	Password string `codec:"password"`
}

// ImageDownload says how a file of the web is found and verified. The older community
// driver has this block, too.
type ImageDownload struct {
	Force  bool   `codec:"force"`
	SHA256 string `codec:"sha256"`
	Type   string `codec:"type"`
	URL    string `codec:"url"`
	Verify string `codec:"verify"`
}

var imageSchema = schema.Options{
	"auth": schema.Block("auth", schema.Options{
		"username": schema.RequiredAttr("username", "string"),
		"password": schema.RequiredAttr("password", "string"),
	}),
	"auth_soft_fail": schema.WithDefault("auth_soft_fail", "bool", false),
	"image":          schema.RequiredAttr("image", "string"),
	"image_download": schema.Block("image_download", schema.Options{
		"force":  schema.WithDefault("force", "bool", false),
		"sha256": schema.Attr("sha256", "string"),
		"type":   schema.Attr("type", "string"),
		"url":    schema.Attr("url", "string"),
		"verify": schema.Attr("verify", "string"),
	}),
	"image_policy": schema.Attr("image_policy", "string"),
	"pull_policy":  schema.Attr("pull_policy", "string"),
}

// ImageKind is the kind of what the option `image` names. It depends only on the form of
// the name, so that a job means the same on every client.
type ImageKind int

// The kinds of images.
const (
	MachinedImage ImageKind = iota // a name without /, : and @
	LocalImage                     // a directory, a raw disk or a block device by its path
	OCIImage                       // of a registry, an archive or a layout
	FileImage                      // to be unpacked: a tarball or a disk, by its URL or path
)

// dockerType is a value of image_download.type. With it, the URL is the name of a
// registry's image, as in `image`.
const dockerType = "docker"

// ImageKind returns the kind of image that the job names.
func (c TaskConfig) ImageKind() ImageKind {
	name := c.Image
	switch {
	case c.ImageDownload != nil && c.ImageDownload.Type == dockerType:
		return OCIImage
	case c.ImageDownload != nil && c.ImageDownload.URL != "", image.IsDownload(name):
		return FileImage
	case filepath.IsAbs(name), c.ImageOfTask():
		kind, compression, err := download.Format(name)
		if err == nil && (kind != download.Raw || compression != "") {
			return FileImage
		}
		return LocalImage
	case strings.ContainsAny(name, "/:@"):
		return OCIImage
	}
	return MachinedImage
}

// ImageOfTask reports whether the image is a path of the task's directory, where an
// artifact may have put it.
func (c TaskConfig) ImageOfTask() bool {
	return strings.HasPrefix(c.Image, "./") || strings.HasPrefix(c.Image, "../") || strings.HasPrefix(c.Image, "local/")
}

// FromStore reports whether the image is run from the store.
func (c TaskConfig) FromStore() bool {
	return c.ImageKind() == OCIImage || c.ImageKind() == FileImage
}

// Image is an image on this host. If all fields are empty, it is not known yet.
type Image struct {
	Tree        string     // directory tree; or,
	Disk        string     // raw disk or block device; or
	StoreDigest string     // digest in the store
	Config      oci.Config // how the image is run, by its own config
}

var sha256Pattern = regexp.MustCompile(`^(sha256:)?[0-9a-fA-F]{64}$`)

func (c TaskConfig) validateImage() error {
	var found schema.Mistakes
	kind := c.ImageKind()
	found.Add(schema.NotEmpty("image", c.Image), schema.OneOf("pull_policy", c.PullPolicy, image.Policies))
	found.Unless(c.Auth == nil || kind == OCIImage, "auth: only images of registries are logged in for")
	found.Unless(len(c.Entrypoint) == 0 || kind == OCIImage, "entrypoint: only OCI images have one; put it into command")
	found.Unless(len(c.Entrypoint) == 0 || c.Mode() != machine.Boot, "entrypoint: cannot be combined with boot")
	found.Unless(c.ImagePolicy == "" || kind != OCIImage, "image_policy: %q is no disk image", c.Image)
	found.Unless(c.PullPolicy == "" || c.FromStore(), "pull_policy: %q is not pulled", c.Image)
	found.Unless(c.Ephemeral || !c.FromStore(), "ephemeral: an image of the store is shared and cannot be run in place")
	if d := c.ImageDownload; d != nil {
		found.Unless(kind == FileImage || d.Type == dockerType, "image_download: %q is no file to download: set image_download.url", c.Image)
		found.Add(
			schema.OneOf("image_download.type", d.Type, []string{string(download.Tar), string(download.Raw), string(download.QCOW2), dockerType}),
			schema.OneOf("image_download.verify", d.Verify, []string{string(download.VerifySignature), string(download.VerifyChecksum), string(download.VerifyNo)}),
			schema.Matches("image_download.sha256", d.SHA256, sha256Pattern, "64 hexadecimal digits"))
	}
	return found.Err()
}

func (c TaskConfig) applyImage(in Input, spec *machine.Spec) error {
	spec.Root.Image, spec.Root.Disk, spec.Root.StoreDigest = in.Image.Tree, in.Image.Disk, in.Image.StoreDigest
	spec.Root.DiskPolicy = c.ImagePolicy
	if c.ImagePolicy != "" && in.Image.Tree != "" { // a name may turn out to be a tree
		return fmt.Errorf("image_policy: %q is a directory tree", c.Image)
	}
	return nil
}

// Pull returns when the image is fetched again.
func (c TaskConfig) Pull(source image.Source) image.Policy {
	switch {
	case c.PullPolicy != "":
		return image.Policy(c.PullPolicy)
	case c.ImageDownload != nil && c.ImageDownload.Force:
		return image.Always
	}
	return source.DefaultPolicy()
}

// addVolumesOfImage makes the VOLUMEs of an OCI image writable, each with what the image
// has there. They are private, count against the limit of the disk, and are discarded
// with the container, like the rest of a copy-on-write root. If that is read-only, each
// volume gets a layer of its own.
//
// A volume that lies in a mount of the job is the job's to provide.
func (c TaskConfig) addVolumesOfImage(in Input, spec *machine.Spec) {
	mounts := mountPoints(*spec)
	var own []string
	for _, volume := range in.Image.Config.Volumes { // directories come before their contents
		if isCovered(mounts, volume) {
			continue
		}
		spec.Root.Directories = append(spec.Root.Directories, volume)
		if c.ReadOnly && !isCovered(own, volume) {
			own = append(own, volume)
			spec.Overlays = append(spec.Overlays, machine.Overlay{
				Lower:       []machine.Layer{{Path: volume, InRoot: true}},
				Destination: volume,
			})
		}
	}
}

// isCovered reports whether path is one of the directories or lies in one.
func isCovered(dirs []string, path string) bool {
	return slices.ContainsFunc(dirs, func(dir string) bool { return paths.Within(dir, path) })
}

// mountPoints returns the paths at which the job, Nomad and systemd-nspawn mount
// something.
func mountPoints(spec machine.Spec) []string {
	points := []string{"/dev", "/proc", "/run", "/sys", "/tmp"}
	for _, point := range spec.MountPoints() {
		points = append(points, point.Path)
	}
	return points
}
