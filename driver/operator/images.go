package operator

import (
	"errors"
	"fmt"
	"net/url"
	"path"
	"slices"
	"strings"

	"nomad-driver-nspawn/nspawn/image/download"
	"nomad-driver-nspawn/nspawn/image/oci"
	"nomad-driver-nspawn/nspawn/paths"
)

// An element of allowed_images is one of
//   - /PATH: images of the host at this path or below it, by path or by name;
//   - http://HOST/PATH, https://HOST/PATH: files of the web at this path or below it;
//   - REGISTRY or REGISTRY/REPOSITORY: this repository and those below it;
//   - local: images of the task's own directory.
//
// Without the option every image is allowed that the other rules allow.

// taskImages stands for the images in the task's own directory.
const taskImages = "local"

// checkAllowedImage requires one of the forms, so that no rule names an image by mistake.
func checkAllowedImage(rule string) error {
	host, _, _ := strings.Cut(rule, "/")
	switch {
	case rule == taskImages, strings.HasPrefix(rule, "/"):
		return nil
	case strings.Contains(rule, "://"):
		_, err := webPrefix(rule)
		return err
	case registryHost.MatchString(host) && (strings.ContainsAny(host, ".:") || host == "localhost"):
		return nil
	}
	return fmt.Errorf("%q is none of /PATH, https://HOST/PATH, REGISTRY/REPOSITORY (as docker.io/library) and %s", rule, taskImages)
}

// RegistryImage checks an image of a registry.
func (p Policy) RegistryImage(reference oci.Reference) error {
	name := reference.Registry + "/" + reference.Repository
	return p.allowedImage(name, func(rule string) bool {
		return !strings.HasPrefix(rule, "/") && paths.Within(strings.TrimSuffix(rule, "/"), name)
	})
}

// WebImage checks a file of the web. Redirects are the responsibility of the server's
// operator.
func (p Policy) WebImage(request download.Request) error {
	if p.rules.AllowedImages == nil {
		return nil
	}
	asked, err := webPrefix(request.URL)
	if err != nil {
		return err
	}
	return p.allowedImage(request.String(), func(rule string) bool {
		allowed, err := webPrefix(rule)
		return err == nil && allowed.Scheme == asked.Scheme && allowed.Host == asked.Host && paths.Within(path.Clean("/"+allowed.Path), asked.Path)
	})
}

// webPrefix parses a URL of the web. Its path must be plain, because a server may
// interpret an encoded slash or a dot differently.
func webPrefix(text string) (*url.URL, error) {
	u, err := url.Parse(text)
	switch {
	case err != nil: // its text may contain a password
		return nil, errors.New("the URL is malformed")
	case u.Scheme != "http" && u.Scheme != "https", u.Host == "":
		return nil, errors.New("the URL is none of http://HOST/PATH and https://HOST/PATH")
	case u.RawPath != "", path.Clean("/"+u.Path) != "/"+strings.Trim(u.Path, "/"):
		return nil, errors.New("the URL's path has dots, empty parts or encoded slashes, which allowed_images in the plugin's config does not take")
	}
	u.Host = strings.ToLower(u.Host)
	if port := map[string]string{"http": "80", "https": "443"}[u.Scheme]; u.Port() == port {
		u.Host = strings.TrimSuffix(u.Host, ":"+port)
	}
	return u, nil
}

// ImagePath checks the path of an image, which must be below one of the operator's
// directories. below reports whether the image is in a directory.
func (p Policy) ImagePath(name string, below func(dir string) bool) error {
	if err := belowOne("image_paths", p.rules.ImagePaths, name, below); err != nil {
		return err
	}
	return p.NamedImage(name, below)
}

// NamedImage checks an image of the host that machined knows.
func (p Policy) NamedImage(name string, below func(dir string) bool) error {
	return p.allowedImage(name, func(rule string) bool { return strings.HasPrefix(rule, "/") && below(rule) })
}

// TaskImage checks an image in the task's own directory.
func (p Policy) TaskImage(name string) error {
	return p.allowedImage(name, func(rule string) bool { return rule == taskImages })
}

func (p Policy) allowedImage(name string, matches func(rule string) bool) error {
	if p.rules.AllowedImages == nil || slices.ContainsFunc(p.rules.AllowedImages, matches) {
		return nil
	}
	return fmt.Errorf("%q is not one that the operator allows with allowed_images in the plugin's config (%s)",
		name, listed(p.rules.AllowedImages))
}

// DiskImage checks a disk image of the web or of the task's directory. Kernel file system
// drivers do not expect malicious images, and crafted ones have exploited them before.
func (p Policy) DiskImage() error {
	return refusal{
		what:   "image: a disk image of the web or of the task's directory has the kernel read a file system that anybody may have made",
		option: "allow_disk_images",
		or:     "put the image below image_paths",
	}.unless(p.rules.AllowDiskImages)
}

// UnverifiedImage checks a download that is not verified.
func (p Policy) UnverifiedImage() error {
	return refusal{
		what:   `image_download.verify: "no" takes whatever comes`,
		option: "allow_unverified_images",
		or:     "the job give sha256",
	}.unless(p.rules.AllowUnverifiedImages)
}

// InPlace checks an image that the task may change.
func (p Policy) InPlace() error {
	return refusal{what: "ephemeral: false lets the job change the image that others start from", option: "allow_in_place"}.unless(p.rules.AllowInPlace)
}
