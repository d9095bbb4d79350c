package rootfs

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"nomad-driver-nspawn/nspawn/idmap"
	"nomad-driver-nspawn/nspawn/mounts"
	"nomad-driver-nspawn/nspawn/tree"
)

// Probe checks by making an overlay whether mount, such as Overlay.Mount, works on the
// file system of dir, and the overlay is writable. It leaves nothing behind.
func Probe(dir string, mount func(Overlay) error) (err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("probe root file systems: %w", err)
	}
	top, err := os.MkdirTemp(dir, ".probe-")
	if err != nil {
		return fmt.Errorf("probe root file systems: %w", err)
	}
	o := Overlay{
		Lower:   []string{filepath.Join(top, "lower")},
		RW:      filepath.Join(top, "rw"),
		Target:  filepath.Join(top, "merged"),
		UIDBase: idmap.MinBase,
	}
	defer func() {
		if err = errors.Join(err, mounts.Unmount(o.Target), tree.Remove(top)); err != nil {
			err = fmt.Errorf("probe root file systems in %s (%s): %w", dir, mounts.FSType(dir), err)
		}
	}()
	if err := os.Mkdir(o.Lower[0], 0o755); err != nil {
		return err
	}
	if err := mount(o); err != nil {
		return err
	}
	return o.checkOwners()
}

// checkOwners checks that the machine's root owns the merged tree, and that host root can
// create and give away files in it.
func (o Overlay) checkOwners() error {
	var root unix.Stat_t
	if err := unix.Stat(o.Target, &root); err != nil {
		return fmt.Errorf("stat merged root: %w", err)
	}
	if root.Uid != o.UIDBase || root.Gid != o.UIDBase {
		return fmt.Errorf("merged root belongs to %d:%d, want %d", root.Uid, root.Gid, o.UIDBase)
	}
	file := filepath.Join(o.Target, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		return err
	}
	return os.Chown(file, int(o.UIDBase), int(o.UIDBase))
}
