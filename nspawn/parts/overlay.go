package parts

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"nomad-driver-nspawn/nspawn/dirs"
	"nomad-driver-nspawn/nspawn/machine"
	"nomad-driver-nspawn/nspawn/mounts"
	"nomad-driver-nspawn/nspawn/paths"
	"nomad-driver-nspawn/nspawn/rootfs"
	"nomad-driver-nspawn/nspawn/tree"
)

// openOverlay returns an overlay as a detached mount.
func (m *Maker) openOverlay(d *draft, overlay machine.Overlay, index string) (*os.File, error) {
	name, root := d.spec.Machine, m.dirs.Root(d.spec.Machine)
	merged := rootfs.Overlay{Target: m.dirs.Mounted(name, layersMount), Within: d.stage.Do, UIDBase: d.base}
	if !d.spec.Root.InPlace {
		merged.Root = root // its files already have the machine's owners
	}
	merged.Open = func(path string) (*os.File, error) {
		if paths.Within(root, path) {
			return d.openInRoot(root, strings.TrimPrefix(path, root))
		}
		return d.openLayer(path)
	}
	for _, layer := range slices.Backward(overlay.Lower) {
		path := layer.Path
		if layer.InRoot {
			path = filepath.Join(root, filepath.Join("/", layer.Path))
		}
		merged.Lower = append(merged.Lower, path)
	}
	rw := m.dirs.OverlayRW(name, index)
	switch {
	case overlay.ReadOnly:
	case overlay.Upper == "":
		merged.RW = rw
	default:
		if err := os.MkdirAll(filepath.Dir(rw), 0o700); err != nil {
			return nil, err
		}
		if err := m.claim(overlay.Upper, rw); err != nil {
			return nil, err
		}
		merged.Upper, merged.Work = overlay.Upper, dirs.OverlayWork(name, index)
	}
	return merged.Assemble()
}

// openInRoot returns a directory of the machine's root as a detached mount. Symbolic links
// are resolved as in the machine.
func (d *draft) openInRoot(root, name string) (tree *os.File, err error) {
	err = d.stage.Do(func() error {
		top, err := mounts.Open(root, "")
		if err != nil {
			return err
		}
		defer top.Close()
		how := unix.OpenHow{Flags: unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS}
		fd, err := unix.Openat2(int(top.Fd()), name, &how)
		if err != nil {
			return fmt.Errorf("find %s in the image: %w", name, err)
		}
		dir := os.NewFile(uintptr(fd), name)
		defer dir.Close()
		tree, err = mounts.CopyOne(dir)
		return err
	})
	return tree, err
}

// removeMounts releases the upper layers of overlays. The mounts themselves end with the
// stage.
func (m *Maker) removeMounts(_ context.Context, name string) error {
	links, _ := filepath.Glob(m.dirs.OverlayRW(name, "*")) // the pattern is well-formed
	for _, link := range links {
		upper, err := os.Readlink(link)
		if err != nil {
			continue // a directory of this machine, removed with its writable layer
		}
		if err := removeWork(filepath.Dir(upper), dirs.OverlayWork(name, filepath.Base(link))); err != nil {
			return err
		}
		if err := os.Remove(link); err != nil {
			return fmt.Errorf("release upper layer %s: %w", upper, err)
		}
	}
	return ignoreNotExist(os.Remove(m.dirs.Claim(name)))
}

// removeWork removes a work directory. The path of its parent had no links when the work
// directory was made, so behind a link there is nothing to remove.
func removeWork(parent, name string) error {
	dir, err := mounts.Open(parent, "/")
	if errors.Is(err, unix.ELOOP) || errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		return nil
	}
	if err != nil {
		return err
	}
	defer dir.Close()
	return tree.Remove(fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), name))
}
