package driver

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"nomad-driver-nspawn/nspawn"
	"nomad-driver-nspawn/nspawn/systemd"
)

// resolveImage finds the directory tree that an image is: an absolute path
// below one of the operator's image_paths, or a name that machined knows.
func (d *Driver) resolveImage(ctx context.Context, policy Config, task TaskConfig) (string, error) {
	if task.Image == "" {
		return "", nil // reported with all else by Validate
	}
	dir, err := d.locateImage(ctx, policy, task.Image)
	if err != nil {
		return "", fmt.Errorf("image: %w", err)
	}
	if err := checkTree(dir, task.mode()); err != nil {
		return "", fmt.Errorf("image: %w", err)
	}
	return dir, nil
}

func (d *Driver) locateImage(ctx context.Context, policy Config, image string) (string, error) {
	switch {
	case filepath.IsAbs(image):
		return allowedImage(policy, image)
	case strings.Contains(image, "/"):
		return "", fmt.Errorf("%q is a relative path: use an absolute one, or the name of an image in /var/lib/machines", image)
	}
	if strings.HasPrefix(image, ".") {
		// ".host" is the host's own root; others are what importd hides.
		return "", fmt.Errorf("%q is no image to run: hidden names are machined's own", image)
	}
	found, err := d.bus.Image(ctx, image)
	switch {
	case errors.Is(err, systemd.ErrNotFound):
		return "", fmt.Errorf("machined knows no image %q: `machinectl list-images` shows those of this client, kept in /var/lib/machines", image)
	case err != nil:
		return "", err
	case found.Type != "directory" && found.Type != "subvolume":
		return "", fmt.Errorf("%q is of type %s: only directory trees are supported", image, found.Type)
	}
	return filepath.EvalSymlinks(found.Path)
}

// allowedImage resolves symbolic links first, lest one leads out of the
// operator's directories.
func allowedImage(policy Config, image string) (string, error) {
	dir, err := filepath.EvalSymlinks(image)
	if err != nil {
		return "", fmt.Errorf("find %s on this client: %w", image, err)
	}
	allowed := func(parent string) bool {
		parent, err := filepath.EvalSymlinks(parent)
		return err == nil && within(parent, dir)
	}
	if !slices.ContainsFunc(policy.ImagePaths, allowed) {
		return "", fmt.Errorf("%s is not below a directory that the operator allows with image_paths in the plugin's config (%s)",
			image, strings.Join(policy.ImagePaths, ", "))
	}
	return dir, nil
}

// within says whether a clean path is the directory or below it.
func within(dir, path string) bool {
	return path == dir || strings.HasPrefix(path, strings.TrimSuffix(dir, "/")+"/")
}

// inits are where nspawn looks for the init of an image (systemd-nspawn(1), --boot).
var inits = []string{"usr/lib/systemd/systemd", "lib/systemd/systemd", "sbin/init"}

// checkTree refuses what systemd-nspawn would, in words that say what to do.
func checkTree(dir string, mode nspawn.Mode) error {
	info, err := os.Stat(dir)
	if err != nil {
		return fmt.Errorf("look at %s: %w", dir, err)
	}
	if !info.IsDir() {
		return fmt.Errorf("%s is not a directory: only directory trees are supported", dir)
	}
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
