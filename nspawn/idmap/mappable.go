package idmap

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"nomad-driver-nspawn/nspawn/mounts"
)

// Mappable returns nil if a mount of path can be ID-mapped, and otherwise the reason why
// not.
func Mappable(path string) error {
	var stat unix.Statfs_t
	if err := unix.Statfs(path, &stat); err != nil {
		return fmt.Errorf("inspect the file system of %s: %w", path, err)
	}
	switch stat.Type {
	case unix.EXT4_SUPER_MAGIC, unix.XFS_SUPER_MAGIC, unix.BTRFS_SUPER_MAGIC:
		return nil // since kernel 5.15 at the latest
	}
	users, err := Namespace(RangeSize)
	if err != nil {
		return err
	}
	defer users.Close()
	tree, err := unix.OpenTree(unix.AT_FDCWD, path, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return fmt.Errorf("open %s: %w", path, err)
	}
	defer unix.Close(tree)
	return Map(tree, path, users)
}

// Map ID-maps a detached mount of path, and all mounts below it, by a [Namespace]. The
// error is [ErrUnmappable] if that is not possible there.
func Map(tree int, path string, users *os.File) error {
	idmap := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(users.Fd())}
	if err := unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, &idmap); err != nil {
		return explain(path, err)
	}
	return nil
}

// ErrUnmappable means that the kernel or a file system does not support ID-mapped mounts,
// or overlays of them.
var ErrUnmappable = errors.New("cannot be ID-mapped")

func explain(dir string, err error) error {
	switch {
	case errors.Is(err, unix.ENOSYS):
		return fmt.Errorf("%w (%w): this needs kernel 5.12", ErrUnmappable, err)
	case errors.Is(err, unix.EINVAL):
		return fmt.Errorf("%w (%w): this kernel can not ID-map mounts of file system %s, only of others (ext4, xfs, btrfs)",
			ErrUnmappable, err, mounts.FSType(dir))
	case errors.Is(err, unix.EPERM): // already ID-mapped, or owned by a user namespace
		return fmt.Errorf("%w (%w): it is ID-mapped already, or its file system belongs to a user namespace", ErrUnmappable, err)
	}
	return err
}
