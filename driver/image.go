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
	"golang.org/x/sys/unix"

	"nomad-driver-nspawn/driver/job"
	"nomad-driver-nspawn/driver/operator"
	"nomad-driver-nspawn/nspawn/image"
	"nomad-driver-nspawn/nspawn/machine"
	"nomad-driver-nspawn/nspawn/paths"
	"nomad-driver-nspawn/nspawn/systemd"
)

// busError is an error that is not the job's fault.
type busError struct{ error }

func (e busError) Unwrap() error { return e.error }

// foundImage is an image that is on this host.
type foundImage struct {
	job.Image
	// Release allows the store to collect the image if no machine uses it. It may be nil.
	Release func()
}

// findImage finds the directory tree or the disk of an image: by a path below one of the
// operator's image_paths or in the task's directory, or by a name that machined knows.
func (d *Driver) findImage(ctx context.Context, policy operator.Policy, task job.TaskConfig, cfg *drivers.TaskConfig) (found foundImage, err error) {
	if task.Image == "" {
		return found, nil // Validate reports it, with all other mistakes
	}
	path, err := d.locateImage(ctx, policy, task, cfg)
	if err != nil {
		return found, fmt.Errorf("image: %w", err)
	}
	disk, err := isDisk(path)
	switch {
	case err != nil:
	case disk && task.ImageOfTask():
		found.Disk = path
		return found, policy.DiskImage()
	case disk:
		found.Disk = path
		return found, nil
	default:
		err = errors.Join(image.CheckTree(path), checkTree(path, task.Mode()))
	}
	if err != nil {
		return found, fmt.Errorf("image: %w", err)
	}
	found.Tree = path
	return found, nil
}

func (d *Driver) locateImage(ctx context.Context, policy operator.Policy, task job.TaskConfig, cfg *drivers.TaskConfig) (string, error) {
	if task.ImageKind() == job.LocalImage {
		return allowedPath(policy, task.Image, cfg)
	}
	path, err := d.askMachined(ctx, task.Image)
	if err != nil {
		return "", err
	}
	return path, policy.NamedImage(task.Image, isBelow(path))
}

// isDisk distinguishes a disk from a directory.
func isDisk(path string) (bool, error) {
	info, err := os.Stat(path)
	if err != nil {
		return false, fmt.Errorf("inspect %s: %w", path, err)
	}
	mode := info.Mode()
	isDevice := mode&os.ModeDevice != 0 && mode&os.ModeCharDevice == 0
	if !info.IsDir() && !mode.IsRegular() && !isDevice {
		return false, fmt.Errorf("%s is neither a directory nor a disk", path)
	}
	return !info.IsDir(), nil
}

func (d *Driver) askMachined(ctx context.Context, name string) (string, error) {
	if strings.HasPrefix(name, ".") {
		// ".host" is the host's own root. importd hides others.
		return "", fmt.Errorf("%q is not an image to run: hidden names are machined's own", name)
	}
	found, err := d.bus.Image(ctx, name)
	switch {
	case errors.Is(err, systemd.ErrNotFound):
		return "", fmt.Errorf("machined knows no image %q: `machinectl list-images` shows those of this client, kept in /var/lib/machines; "+
			"an image of a registry has a tag, as %s:latest", name, name)
	case err != nil:
		return "", busError{err}
	}
	return filepath.EvalSymlinks(found.Path)
}

// allowedPath resolves symbolic links first, so that no link leads out of the operator's
// directories or, for a relative path, out of the task's directory.
func allowedPath(policy operator.Policy, name string, cfg *drivers.TaskConfig) (string, error) {
	dir, err := filepath.EvalSymlinks(cfg.TaskDir().Dir)
	if err != nil {
		return "", fmt.Errorf("find the task's directory: %w", err)
	}
	path := name
	if !filepath.IsAbs(name) {
		path = filepath.Join(dir, name)
	}
	found, err := filepath.EvalSymlinks(path)
	if err != nil {
		return "", fmt.Errorf("find %s on this client: %w", name, err)
	}
	switch {
	case paths.Overlap(found, filepath.Join(dir, allocdir.TaskPrivate)):
		return "", fmt.Errorf("%q shows Nomad's own files of the task, in private", name)
	case filepath.IsAbs(name):
		return found, policy.ImagePath(name, isBelow(found))
	case !paths.Within(dir, found):
		return "", fmt.Errorf("%q is not in the task's directory", name)
	}
	return found, policy.TaskImage(name)
}

// isBelow returns a function that reports whether a path without links is a directory or
// lies in it.
func isBelow(path string) func(dir string) bool {
	return func(dir string) bool {
		dir, err := filepath.EvalSymlinks(dir)
		return err == nil && paths.Within(dir, path)
	}
}

// findSource finds the file or directory of this host from which an image of the store
// comes, if it comes from one.
func findSource(policy operator.Policy, source image.Source, cfg *drivers.TaskConfig) (image.Source, error) {
	path := &source.Reference.Path
	if source.Kind != "" { // a file
		path = &source.Download.URL
		if image.IsDownload(*path) {
			return source, nil
		}
	}
	if *path == "" {
		return source, nil
	}
	found, err := allowedPath(policy, *path, cfg)
	if err != nil {
		return source, fmt.Errorf("image: %w", err)
	}
	*path, source.Version = found, fileVersion(found)
	return source, nil
}

// fileVersion distinguishes a local image from a later one at the same path. The version
// of a layout is the version of its index. It is empty for a file that cannot be
// inspected, and therefore not read either.
func fileVersion(path string) string {
	var stat unix.Stat_t
	if unix.Stat(filepath.Join(path, "index.json"), &stat) != nil && unix.Stat(path, &stat) != nil {
		return ""
	}
	return fmt.Sprintf("%d-%d-%d.%09d", stat.Ino, stat.Size, stat.Mtim.Sec, stat.Mtim.Nsec)
}

// inits are the paths at which nspawn looks for the init of an image (systemd-nspawn(1),
// --boot).
var inits = []string{"usr/lib/systemd/systemd", "lib/systemd/systemd", "sbin/init"}

// checkTree refuses what systemd-nspawn would refuse, with errors that say what to do.
func checkTree(dir string, mode machine.Mode) error {
	has := func(names ...string) bool {
		return slices.ContainsFunc(names, func(name string) bool {
			_, err := os.Lstat(filepath.Join(dir, name))
			return err == nil
		})
	}
	switch {
	case !has("usr"):
		return fmt.Errorf("%s has no /usr: it is not an operating system tree", dir)
	case mode != machine.Boot:
		return nil
	case !has("etc/os-release", "usr/lib/os-release"):
		return fmt.Errorf("%s has no os-release file, which boot needs: set boot = false and a command, or install an operating system in it", dir)
	case !has(inits...):
		return fmt.Errorf("%s has no init to boot (/%s): install systemd in it, or set boot = false and a command", dir, strings.Join(inits, ", /"))
	}
	return nil
}
