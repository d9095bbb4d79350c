package job

import (
	"fmt"
	"slices"
	"strings"
)

// policyOptions are what the operator allows jobs. Each is off unless the
// operator turns it on.
type policyOptions struct {
	AllowDiskImages       bool     `codec:"allow_disk_images"`
	AllowInPlace          bool     `codec:"allow_in_place"`
	AllowPrivileged       bool     `codec:"allow_privileged"`
	AllowUnverifiedImages bool     `codec:"allow_unverified_images"`
	ImagePaths            []string `codec:"image_paths"`
	Volumes               bool     `codec:"volumes"`
}

func defaultPolicy() policyOptions {
	return policyOptions{ImagePaths: []string{"/var/lib/machines"}}
}

var policySchema = options{
	"allow_disk_images":       withDefault("allow_disk_images", "bool", defaults.AllowDiskImages),
	"allow_in_place":          withDefault("allow_in_place", "bool", defaults.AllowInPlace),
	"allow_privileged":        withDefault("allow_privileged", "bool", defaults.AllowPrivileged),
	"allow_unverified_images": withDefault("allow_unverified_images", "bool", defaults.AllowUnverifiedImages),
	"image_paths":             withDefault("image_paths", "list(string)", defaults.ImagePaths),
	"volumes":                 withDefault("volumes", "bool", defaults.Volumes),
}

func (c Config) validatePolicy() error {
	var found mistakes
	for i, path := range c.ImagePaths {
		found.add(absolute(at("image_paths", i), path))
	}
	return found.err()
}

// Policy is what the operator allows the jobs of a namespace. Its methods answer
// with the error that the job's author reads, or with nil.
type Policy struct {
	allowed policyOptions
	// LogCollection says that Nomad collects the output of tasks.
	LogCollection bool
}

// Policy returns what the operator allows the jobs of a Nomad namespace.
func (c Config) Policy(_ string) Policy {
	return Policy{allowed: c.policyOptions, LogCollection: !c.DisableLogCollection}
}

// refusal is what is not allowed unless an option of the operator is true.
type refusal struct {
	what   string
	it     string // the word for it; "it" if empty
	option string
	or     string // another way out, if there is one
}

// unless returns the error if the operator has not allowed it.
func (r refusal) unless(allowed bool) error {
	if allowed {
		return nil
	}
	if r.it == "" {
		r.it = "it"
	}
	if r.or != "" {
		r.or = ", or " + r.or
	}
	return fmt.Errorf("%s; the operator has to allow %s with %s = true in the plugin's config%s", r.what, r.it, r.option, r.or)
}

// DiskImage answers for a disk image of the web or of the task's directory.
// Kernel file system drivers do not expect malicious images, and crafted ones
// have exploited them before.
func (p Policy) DiskImage() error {
	return refusal{
		what:   "image: a disk image of the web or of the task's directory has the kernel read a file system that anybody may have made",
		option: "allow_disk_images",
		or:     "put the image below image_paths",
	}.unless(p.allowed.AllowDiskImages)
}

// UnverifiedImage answers for a download that nothing verifies.
func (p Policy) UnverifiedImage() error {
	return refusal{
		what:   `image_download.verify: "no" takes whatever comes`,
		option: "allow_unverified_images",
		or:     "the job give sha256",
	}.unless(p.allowed.AllowUnverifiedImages)
}

// InPlace answers for an image that the task may change.
func (p Policy) InPlace() error {
	return refusal{what: "ephemeral: false lets the job change the image that others start from", option: "allow_in_place"}.unless(p.allowed.AllowInPlace)
}

// HostUsers answers for a machine without a user namespace.
func (p Policy) HostUsers() error {
	return refusal{what: "user_namespacing: false makes the machine's root the host's root", option: "allow_privileged"}.unless(p.allowed.AllowPrivileged)
}

// HostPath answers for a path of the host.
func (p Policy) HostPath() error {
	return refusal{
		what:   "paths of the host are not allowed",
		it:     "them",
		option: "volumes",
		or:     "the path be relative to the task's directory",
	}.unless(p.allowed.Volumes)
}

// ImagePath answers for the path of an image, which is allowed below one of the
// operator's directories. The function below reports whether the image is in a
// directory.
func (p Policy) ImagePath(name string, below func(dir string) bool) error {
	if slices.ContainsFunc(p.allowed.ImagePaths, below) {
		return nil
	}
	return fmt.Errorf("%q is not below a directory that the operator allows with image_paths in the plugin's config (%s)",
		name, strings.Join(p.allowed.ImagePaths, ", "))
}
