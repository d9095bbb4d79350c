package driver

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/hashicorp/nomad/client/allocdir"
	"github.com/hashicorp/nomad/plugins/drivers"

	"nomad-driver-nspawn/nspawn"
	"nomad-driver-nspawn/nspawn/image/oci"
	"nomad-driver-nspawn/nspawn/systemd"
)

// busError is one that has nothing to do with the job.
type busError struct{ error }

func (e busError) Unwrap() error { return e.error }

// foundImage is an image that is on this host.
type foundImage struct {
	Tree   string     // directory tree; or, if it is empty,
	Disk   string     // raw disk or block device; or
	Stored string     // digest in the store
	Config oci.Config // how the image says that it is run
	// Release lets the store collect it, if no machine uses it. It may be nil.
	Release func()
}

// findImage finds the directory tree or the disk that an image is: a path below
// one of the operator's image_paths or in the task's directory, or a name that
// machined knows.
func (d *Driver) findImage(ctx context.Context, policy Config, task TaskConfig, cfg *drivers.TaskConfig) (foundImage, error) {
	if task.Image == "" {
		return foundImage{}, nil // reported with all else by Validate
	}
	locate := func() (string, error) { return d.askMachined(ctx, task.Image) }
	if task.imageKind() == localImage {
		locate = func() (string, error) { return allowedPath(policy, task.Image, cfg) }
	}
	path, err := locate()
	if err != nil {
		return foundImage{}, fmt.Errorf("image: %w", err)
	}
	disk, err := isDisk(path)
	switch {
	case err != nil:
	case disk && taskPath(task.Image) && !policy.AllowDiskImages:
		return foundImage{}, errDiskImage
	case disk:
		return foundImage{Disk: path}, nil
	default:
		err = checkTree(path, task.mode())
	}
	if err != nil {
		return foundImage{}, fmt.Errorf("image: %w", err)
	}
	return foundImage{Tree: path}, nil
}

// isDisk tells a disk from a directory.
func isDisk(path string) (bool, error) {
	info, err := os.Stat(path)
	if err != nil {
		return false, fmt.Errorf("look at %s: %w", path, err)
	}
	mode := info.Mode()
	isDevice := mode&os.ModeDevice != 0 && mode&os.ModeCharDevice == 0
	if !info.IsDir() && !mode.IsRegular() && !isDevice {
		return false, fmt.Errorf("%s is neither a directory nor a disk", path)
	}
	return !info.IsDir(), nil
}

func (d *Driver) askMachined(ctx context.Context, image string) (string, error) {
	if strings.HasPrefix(image, ".") {
		// ".host" is the host's own root; others are what importd hides.
		return "", fmt.Errorf("%q is no image to run: hidden names are machined's own", image)
	}
	found, err := d.bus.Image(ctx, image)
	switch {
	case errors.Is(err, systemd.ErrNotFound):
		return "", fmt.Errorf("machined knows no image %q: `machinectl list-images` shows those of this client, kept in /var/lib/machines; "+
			"an image of a registry has a tag, as %s:latest", image, image)
	case err != nil:
		return "", busError{err}
	}
	return filepath.EvalSymlinks(found.Path)
}

// allowedPath resolves symbolic links first, lest one leads out of the
// operator's directories, or of the task's for a relative path.
func allowedPath(policy Config, name string, cfg *drivers.TaskConfig) (string, error) {
	dir, err := filepath.EvalSymlinks(cfg.TaskDir().Dir)
	if err != nil {
		return "", fmt.Errorf("find the task's directory: %w", err)
	}
	path, parents := name, policy.ImagePaths
	if !filepath.IsAbs(name) {
		path, parents = filepath.Join(dir, name), []string{dir}
	}
	found, err := filepath.EvalSymlinks(path)
	if err != nil {
		return "", fmt.Errorf("find %s on this client: %w", name, err)
	}
	allowed := func(parent string) bool {
		parent, err := filepath.EvalSymlinks(parent)
		return err == nil && within(parent, found)
	}
	switch {
	case exposes(found, filepath.Join(dir, allocdir.TaskPrivate)):
		return "", fmt.Errorf("%q shows Nomad's own files of the task, in private", name)
	case slices.ContainsFunc(parents, allowed):
		return found, nil
	case filepath.IsAbs(name):
		return "", fmt.Errorf("%q is not below a directory that the operator allows with image_paths in the plugin's config (%s)",
			name, strings.Join(parents, ", "))
	}
	return "", fmt.Errorf("%q is not in the task's directory", name)
}

// within says whether a clean path is the directory or below it.
func within(dir, path string) bool {
	return path == dir || strings.HasPrefix(path, strings.TrimSuffix(dir, "/")+"/")
}

// inits are where nspawn looks for the init of an image (systemd-nspawn(1), --boot).
var inits = []string{"usr/lib/systemd/systemd", "lib/systemd/systemd", "sbin/init"}

// checkTree refuses what systemd-nspawn would, in words that say what to do.
func checkTree(dir string, mode nspawn.Mode) error {
	has := func(names ...string) bool {
		return slices.ContainsFunc(names, func(name string) bool {
			_, err := os.Lstat(filepath.Join(dir, name))
			return err == nil
		})
	}
	switch {
	case !has("usr"):
		return fmt.Errorf("%s has no /usr: it is not an operating system tree", dir)
	case mode != nspawn.Boot:
		return nil
	case !has("etc/os-release", "usr/lib/os-release"):
		return fmt.Errorf("%s has no os-release file, which boot needs: set boot = false and a command, or install an operating system in it", dir)
	case !has(inits...):
		return fmt.Errorf("%s has no init to boot (/%s): install systemd in it, or set boot = false and a command", dir, strings.Join(inits, ", /"))
	}
	return nil
}
