package rootfs

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// assemble returns the merged tree as a detached mount.
//
// Until kernel 6.15 overlayfs takes a layer only if it is mounted in the
// caller's mount namespace (clone_private_mount() refuses detached mounts). So
// the layers are mounted in a namespace of a thread's own, which dies with the
// thread: no other process sees them, and even a crash leaves nothing behind.
// There they get short names, so no path of the host, however long or whatever
// is in it, reaches the option string of overlayfs with its one page and its
// special characters.
func (o Overlay) assemble() (tree int, err error) {
	var users *os.File
	if o.UIDBase != 0 {
		if users, err = userNamespace(o.UIDBase); err != nil {
			return -1, err
		}
		defer users.Close()
	}
	err = withPrivateMounts(func() error {
		tree, err = o.mountPrivately(users)
		return err
	})
	return tree, err
}

// mountPrivately runs in the private mount namespace, whose mount at Target and
// working directory are its to use.
func (o Overlay) mountPrivately(users *os.File) (tree int, err error) {
	layers, err := o.openLayers(users)
	defer closeAll(layers)
	if err != nil {
		return -1, err
	}
	if err := unix.Mount("tmpfs", o.Target, "tmpfs", 0, "mode=0700"); err != nil {
		return -1, fmt.Errorf("mount tmpfs: %w", err)
	}
	// Let go of everything before returning, not when the thread happens to
	// end.
	defer func() {
		err = errors.Join(err, unix.Chdir("/"), unix.Unmount(o.Target, unix.MNT_DETACH))
	}()
	if err := unix.Chdir(o.Target); err != nil {
		return -1, fmt.Errorf("enter tmpfs: %w", err)
	}
	if err := attachAll(layers); err != nil {
		return -1, err
	}
	return mountOverlay(len(o.Lower))
}

// openLayers returns detached mounts: of what takes the changes, then of every
// lower layer.
func (o Overlay) openLayers(users *os.File) (layers []int, err error) {
	rw, err := o.openRW(users)
	if err != nil {
		return nil, err
	}
	layers = append(layers, rw)
	for _, dir := range o.Lower {
		// Symbolic links in the path of an image were resolved when it was
		// permitted: one that is there now was put there meanwhile, by a machine
		// that runs a directory above in place.
		layer, err := openLayer(dir, unix.RESOLVE_NO_SYMLINKS, users)
		if err != nil {
			return layers, err
		}
		layers = append(layers, layer)
	}
	return layers, nil
}

func (o Overlay) openRW(users *os.File) (int, error) {
	if o.Memory > 0 {
		return o.openMemory()
	}
	return openLayer(o.RW, 0, users)
}

// openLayer clones the mount of a directory, and ID-maps it.
func openLayer(dir string, resolve uint64, users *os.File) (int, error) {
	fd, err := unix.Openat2(unix.AT_FDCWD, dir, &unix.OpenHow{Flags: unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: resolve})
	if err != nil {
		return -1, fmt.Errorf("open layer %s: %w", dir, err)
	}
	defer unix.Close(fd)
	layer, err := unix.OpenTree(fd, "", unix.AT_EMPTY_PATH|unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("open layer %s: %w", dir, err)
	}
	if users == nil {
		return layer, nil
	}
	idmap := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(users.Fd())}
	if err := unix.MountSetattr(layer, "", unix.AT_EMPTY_PATH, &idmap); err != nil {
		unix.Close(layer)
		return -1, fmt.Errorf("map owners of layer %s: %w", dir, explainIDMap(dir, err))
	}
	return layer, nil
}

// attachAll mounts each layer in the working directory under its index.
func attachAll(layers []int) error {
	for i, layer := range layers {
		name := strconv.Itoa(i)
		if err := unix.Mkdir(name, 0o700); err != nil {
			return fmt.Errorf("make mount point of layer: %w", err)
		}
		if err := unix.MoveMount(layer, "", unix.AT_FDCWD, name, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
			return fmt.Errorf("mount layer: %w", err)
		}
	}
	return nil
}

// mountOverlay merges layers 1 to lowers under layer 0, all in the working
// directory, and returns a detached mount of it.
func mountOverlay(lowers int) (tree int, err error) {
	if err := unix.Mkdir("merged", 0o700); err != nil {
		return -1, fmt.Errorf("make mount point of overlay: %w", err)
	}
	names := make([]string, lowers)
	for i := range names {
		names[i] = strconv.Itoa(i + 1)
	}
	// index=off: where the kernel is built with it on, a layer that was copied
	// or pulled anew fails with ESTALE.
	options := "lowerdir=" + strings.Join(names, ":") + ",upperdir=0/upper,workdir=0/work,index=off"
	// nodev: device nodes of an image are never needed, systemd-nspawn mounts a
	// /dev of its own.
	if err := unix.Mount("overlay", "merged", "overlay", unix.MS_NODEV, options); err != nil {
		return -1, fmt.Errorf("mount overlay of %d layers: %w", lowers, explainOverlay(err))
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

func explainIDMap(dir string, err error) error {
	switch {
	case errors.Is(err, unix.ENOSYS):
		return fmt.Errorf("%w: ID-mapped mounts need kernel 5.12", err)
	case errors.Is(err, unix.EINVAL):
		return fmt.Errorf("%w: this kernel can not ID-map mounts of file system %s, use another (ext4, xfs, btrfs)", err, fsType(dir))
	}
	return err
}

func explainOverlay(err error) error {
	switch {
	case errors.Is(err, unix.ENODEV):
		return fmt.Errorf("%w: the kernel has no overlayfs, load module overlay", err)
	case errors.Is(err, unix.EINVAL):
		return fmt.Errorf("%w: overlayfs with ID-mapped layers needs kernel 5.19 and a writable layer on a local file system"+
			" other than overlayfs; the kernel log tells more", err)
	}
	return err
}
