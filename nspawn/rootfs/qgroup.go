package rootfs

import (
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The quotas of btrfs count what is in a subvolume, which has a quota group of
// its own ID. See linux/btrfs.h.

const (
	subvolumeCreate = 0x5000940e // BTRFS_IOC_SUBVOL_CREATE
	qgroupCreate    = 0x4010942a // BTRFS_IOC_QGROUP_CREATE
	qgroupLimit     = 0x8030942b // BTRFS_IOC_QGROUP_LIMIT
	inodeLookup     = 0xd0009412 // BTRFS_IOC_INO_LOOKUP
	fsInfo          = 0x8400941f // BTRFS_IOC_FS_INFO
	limitReferenced = 1          // BTRFS_QGROUP_LIMIT_MAX_RFER
	subvolumeInode  = 256        // BTRFS_FIRST_FREE_OBJECTID, of a subvolume's root
)

// qgroupLimits is struct btrfs_ioctl_qgroup_limit_args.
type qgroupLimits struct{ group, flags, referenced, _, _, _ uint64 }

const noLimit = math.MaxUint64

// qgroupsEnabled asks sysfs, which needs Linux 5.9.
func qgroupsEnabled(file *os.File) bool {
	var info struct {
		_, _ uint64
		id   [16]byte
		_    [992]byte
	}
	if err := ioctl(file.Fd(), fsInfo, unsafe.Pointer(&info)); err != nil {
		return false
	}
	id := info.id
	_, err := os.Stat(fmt.Sprintf("/sys/fs/btrfs/%x-%x-%x-%x-%x/qgroups", id[:4], id[4:6], id[6:8], id[8:10], id[10:]))
	return err == nil
}

func makeSubvolume(parent *os.File, name string, size uint64) error {
	args := struct {
		_    int64
		name [4088]byte
	}{}
	copy(args.name[:len(args.name)-1], name)
	if err := ioctl(parent.Fd(), subvolumeCreate, unsafe.Pointer(&args)); err != nil {
		return fmt.Errorf("create subvolume: %w", err)
	}
	dir, err := openDir(int(parent.Fd()), name)
	if err != nil {
		return err
	}
	defer dir.Close()
	if err := dir.Chmod(0o700); err != nil {
		return err
	}
	limit := qgroupLimits{flags: limitReferenced, referenced: size} // group 0: the directory's
	if err := ioctl(dir.Fd(), qgroupLimit, unsafe.Pointer(&limit)); err != nil {
		return fmt.Errorf("limit subvolume: %w", err)
	}
	return nil
}

// dropQgroup ends the limit, as nothing can be removed from a full subvolume, and
// removes the group, which would stay when the subvolume is gone. Since Linux 6.11
// the kernel refuses that, and does it itself later.
func dropQgroup(dir *os.File) error {
	group, err := subvolume(dir)
	if err != nil || group == 0 {
		return err
	}
	parent, err := os.Open(filepath.Dir(dir.Name())) // what is full refuses these, too
	if err != nil {
		return err
	}
	defer parent.Close()
	limit := qgroupLimits{group: group, flags: limitReferenced, referenced: noLimit}
	if err := ioctl(parent.Fd(), qgroupLimit, unsafe.Pointer(&limit)); err != nil {
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTCONN) { // removed, or quotas turned off
			return nil
		}
		return fmt.Errorf("end the limit of quota group %d: %w", group, err)
	}
	remove := struct{ create, group uint64 }{group: group}
	err = ioctl(parent.Fd(), qgroupCreate, unsafe.Pointer(&remove))
	if err != nil && !errors.Is(err, unix.EBUSY) {
		return fmt.Errorf("remove quota group %d: %w", group, err)
	}
	return nil
}

// subvolume is the ID of the subvolume of which dir is the root, else 0.
func subvolume(dir *os.File) (uint64, error) {
	var fs unix.Statfs_t
	var stat unix.Stat_t
	if err := errors.Join(unix.Fstatfs(int(dir.Fd()), &fs), unix.Fstat(int(dir.Fd()), &stat)); err != nil {
		return 0, err
	}
	if fs.Type != unix.BTRFS_SUPER_MAGIC || stat.Ino != subvolumeInode {
		return 0, nil
	}
	lookup := struct {
		tree, inode uint64
		_           [4080]byte
	}{inode: subvolumeInode}
	if err := ioctl(dir.Fd(), inodeLookup, unsafe.Pointer(&lookup)); err != nil {
		return 0, fmt.Errorf("look up subvolume: %w", err)
	}
	return lookup.tree, nil
}
