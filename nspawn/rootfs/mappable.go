package rootfs

import (
	"context"
	"fmt"

	"golang.org/x/sys/unix"
)

// Mappable tells whether a mount of the file system of path can be ID-mapped. The error says why not.
func Mappable(path string) error {
	var stat unix.Statfs_t
	if err := unix.Statfs(path, &stat); err != nil {
		return fmt.Errorf("look at file system of %s: %w", path, err)
	}
	switch stat.Type {
	case unix.EXT4_SUPER_MAGIC, unix.XFS_SUPER_MAGIC, unix.BTRFS_SUPER_MAGIC:
		return nil // since kernel 5.15 at the latest
	}
	users, err := userNamespace(RangeSize)
	if err != nil {
		return err
	}
	defer users.Close()
	tree, err := unix.OpenTree(unix.AT_FDCWD, path, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return fmt.Errorf("open %s: %w", path, err)
	}
	defer unix.Close(tree)
	return mapOwners(tree, path, users)
}

// HandOver makes the owners of dir and of all in it the machine's: host root its root, other users its users. It stands in for an ID-mapped mount.
func HandOver(ctx context.Context, dir string, base uint32) error {
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("hand over %s: %w", dir, err)
	}
	defer unix.Close(fd)
	if err := chown(ctx, fd, ".", base); err != nil {
		return fmt.Errorf("hand over %s: %w", dir, err)
	}
	return nil
}
