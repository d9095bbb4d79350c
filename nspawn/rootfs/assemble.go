package rootfs

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"nomad-driver-nspawn/nspawn/idmap"
	"nomad-driver-nspawn/nspawn/mounts"
)

// assemble returns the merged tree as a detached mount.
//
// Until Linux 6.15, overlayfs accepts a layer only if it is mounted in the caller's mount
// namespace (clone_private_mount() refuses detached mounts). So the layers are mounted in
// a private namespace, under short names. Paths of the host never appear in the option
// string of overlayfs, which is limited to one page and has special characters.
func (o Overlay) assemble() (tree int, err error) {
	var users *os.File
	if o.UIDBase != 0 {
		if users, err = idmap.Namespace(o.UIDBase); err != nil {
			return -1, err
		}
		defer users.Close()
	}
	layers, err := o.openLayers(users)
	defer closeAll(layers)
	if err != nil {
		return -1, err
	}
	within := o.Within
	if within == nil {
		within = withPrivateMounts
	}
	err = within(func() error {
		tree, err = o.mountPrivately(layers)
		return err
	})
	if refused := (refusal{}); errors.As(err, &refused) {
		return -1, fmt.Errorf("mount overlay of %d layers: %w", len(o.Lower), o.explain(refused.error))
	}
	return tree, err
}

// refusal is the kernel's error for an overlay. It is explained outside of the private
// mount namespace, from which the necessary information is not visible.
type refusal struct{ error }

// mountPrivately runs in the private mount namespace. It may mount at Target there, and
// change the working directory.
func (o Overlay) mountPrivately(layers []int) (tree int, err error) {
	if err := os.MkdirAll(o.Target, 0o700); err != nil {
		return -1, err
	}
	if err := unix.Mount("tmpfs", o.Target, "tmpfs", 0, "mode=0700"); err != nil {
		return -1, fmt.Errorf("mount tmpfs: %w", err)
	}
	// Release everything before returning, not whenever the thread ends.
	defer func() {
		err = errors.Join(err, unix.Chdir("/"), unix.Unmount(o.Target, unix.MNT_DETACH))
	}()
	if err := unix.Chdir(o.Target); err != nil {
		return -1, fmt.Errorf("enter tmpfs: %w", err)
	}
	if err := attachAll(layers); err != nil {
		return -1, err
	}
	options, writable, err := o.options()
	defer closeAll(writable)
	if err != nil {
		return -1, err
	}
	return o.merge(options)
}

// openLayers returns detached mounts: first of every lower layer, then of the layer that
// takes the changes. They are ID-mapped, except for layers whose files have the machine's
// owners already.
func (o Overlay) openLayers(users *os.File) (layers []int, err error) {
	for _, dir := range o.Lower {
		layer, err := o.openLayer(dir)
		if err != nil {
			return layers, err
		}
		layers = append(layers, layer)
	}
	// openMemory and prepareRW read the owner of the topmost layer as it is on disk, so
	// they come before the mapping.
	names := o.Lower
	switch {
	case o.Memory > 0:
		layer, err := o.openMemory(layers[0])
		if err != nil {
			return layers, err
		}
		layers = append(layers, layer) // it is not mapped, as names does not contain it
	case o.Upper != "":
		names = append(slices.Clone(names), filepath.Dir(o.Upper))
		layer, err := o.openLayer(filepath.Dir(o.Upper))
		if err != nil {
			return layers, err
		}
		layers = append(layers, layer)
		if err := o.prepareWork(layer); err != nil {
			return layers, err
		}
	case o.RW != "": // the driver's own directory; its path may contain symbolic links
		names = append(slices.Clone(names), o.RW)
		if err := o.prepareRW(o.RW, layers[0], 0); err != nil {
			return layers, err
		}
		layer, err := mounts.Clone(o.RW, 0)
		if err != nil {
			return layers, fmt.Errorf("open layer %s: %w", o.RW, err)
		}
		layers = append(layers, layer)
	}
	for i, dir := range names {
		if users == nil || o.shifted(dir) {
			continue
		}
		if err := idmap.Map(layers[i], dir, users); err != nil {
			return layers, fmt.Errorf("map owners of layer %s: %w", dir, err)
		}
	}
	return layers, nil
}

func (o Overlay) openLayer(dir string) (int, error) {
	if o.Open == nil {
		layer, err := mounts.Clone(dir, unix.RESOLVE_NO_SYMLINKS)
		if err != nil {
			return -1, fmt.Errorf("open layer %s: %w", dir, err)
		}
		return layer, nil
	}
	tree, err := o.Open(dir)
	if err != nil {
		return -1, fmt.Errorf("open layer %s: %w", dir, err)
	}
	defer tree.Close()
	layer, err := unix.FcntlInt(tree.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("open layer %s: %w", dir, err)
	}
	return layer, nil
}

// attachAll mounts each layer in the working directory, with its index as the name.
func attachAll(layers []int) error {
	for i, layer := range layers {
		name := strconv.Itoa(i)
		if err := unix.Mkdir(name, 0o700); err != nil {
			return fmt.Errorf("make mount point of layer: %w", err)
		}
		private := unix.MountAttr{Propagation: unix.MS_PRIVATE}
		if err := unix.MountSetattr(layer, "", unix.AT_EMPTY_PATH, &private); err != nil {
			return fmt.Errorf("make layer private: %w", err)
		}
		if err := unix.MoveMount(layer, "", unix.AT_FDCWD, name, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
			return fmt.Errorf("mount layer: %w", err)
		}
	}
	return nil
}

// options returns the options of overlayfs for the layers in the working directory.
//
// The writable directories stay open until the overlay is mounted, and are named by their
// descriptors. So a machine that may write beside them cannot replace them by symbolic
// links.
func (o Overlay) options() (options string, open []int, err error) {
	lower := make([]string, len(o.Lower))
	for i := range lower {
		lower[i] = strconv.Itoa(i)
	}
	// index=off: on kernels built with it on, a layer that was copied or pulled again
	// fails with ESTALE.
	options = "index=off,lowerdir=" + strings.Join(lower, ":")
	if o.chowned {
		options += ",metacopy=on"
	}
	if o.readOnly() {
		return options, nil, nil
	}
	w := o.writable()
	for _, dir := range []struct{ option, name string }{{"upperdir", w.upper}, {"workdir", w.work}} {
		how := unix.OpenHow{Flags: unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_BENEATH}
		fd, err := unix.Openat2(unix.AT_FDCWD, filepath.Join(strconv.Itoa(len(lower)), dir.name), &how)
		if err != nil {
			return "", open, fmt.Errorf("open %s: %w", filepath.Join(w.dir, dir.name), err)
		}
		open = append(open, fd)
		options += fmt.Sprintf(",%s=/proc/self/fd/%d", dir.option, fd)
	}
	return options, open, nil
}

// merge mounts the overlay and returns it as a detached mount.
func (o Overlay) merge(options string) (tree int, err error) {
	if err := unix.Mkdir("merged", 0o700); err != nil {
		return -1, fmt.Errorf("make mount point of overlay: %w", err)
	}
	// nodev: device nodes of an image are never needed, because systemd-nspawn mounts a
	// /dev of its own.
	if err := unix.Mount("overlay", "merged", "overlay", unix.MS_NODEV, options); err != nil {
		return -1, refusal{err}
	}
	tree, err = unix.OpenTree(unix.AT_FDCWD, "merged", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("detach overlay: %w", err)
	}
	return tree, nil
}

func closeAll(fds []int) {
	for _, fd := range fds {
		unix.Close(fd)
	}
}

func (o Overlay) explain(err error) error {
	switch {
	case errors.Is(err, unix.ENODEV):
		return fmt.Errorf("%w: the kernel does not support overlayfs; load the module overlay", err)
	case errors.Is(err, unix.EINVAL) && o.UIDBase != 0:
		return fmt.Errorf("layers %w (%w): overlayfs accepts ID-mapped layers since kernel 5.19", idmap.ErrUnmappable, err)
	case errors.Is(err, unix.EINVAL):
		return fmt.Errorf("%w: overlayfs needs a writable layer (%s) on a local file system such as ext4, xfs or btrfs, not on %s;"+
			" see the kernel log for details", err, o.writable().dir, mounts.FSType(o.writable().dir))
	case errors.Is(err, unix.ELOOP):
		return fmt.Errorf("%w: a layer is, or lies in, another", err)
	}
	return err
}
