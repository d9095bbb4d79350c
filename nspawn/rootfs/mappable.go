package rootfs

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"

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
		return nil // since kernel 5.15 at the latest, older than overlays of such mounts
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
	idmap := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(users.Fd())}
	if err := unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, &idmap); err != nil {
		return explainIDMap(path, err)
	}
	return nil
}

// HandOver gives all that host root has in dir, and dir itself, to the machine's root. It stands in for an ID-mapped mount.
func HandOver(dir string, base uint32) error {
	tree, err := os.OpenRoot(dir)
	if err != nil {
		return fmt.Errorf("hand over %s: %w", dir, err)
	}
	defer tree.Close()
	err = fs.WalkDir(tree.FS(), ".", func(name string, _ fs.DirEntry, err error) error {
		if err == nil {
			err = handOver(tree, name, base)
		}
		if errors.Is(err, fs.ErrNotExist) { // gone meanwhile
			return nil
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("hand over %s: %w", dir, err)
	}
	return nil
}

func handOver(tree *os.Root, name string, base uint32) error {
	info, err := tree.Lstat(name)
	if err != nil {
		return err
	}
	if stat, ok := info.Sys().(*syscall.Stat_t); !ok || stat.Uid != 0 {
		return nil
	}
	return tree.Lchown(name, int(base), int(base))
}
