package quota

import (
	"errors"
	"fmt"
	"math"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"

	"nomad-driver-nspawn/nspawn/tree"
)

// btrfs quotas count the contents of a subvolume. Each subvolume has a quota group with
// the subvolume's ID. See linux/btrfs.h.

const (
	subvolumeCreate = 0x5000940e // BTRFS_IOC_SUBVOL_CREATE
	qgroupLimit     = 0x8030942b // BTRFS_IOC_QGROUP_LIMIT
	fsInfo          = 0x8400941f // BTRFS_IOC_FS_INFO
	limitReferenced = 1          // BTRFS_QGROUP_LIMIT_MAX_RFER
	subvolumeInode  = 256        // BTRFS_FIRST_FREE_OBJECTID, of a subvolume's root
)

const noLimit = math.MaxUint64 // CLEAR_VALUE in btrfs_limit_qgroup

// qgroupsEnabled reads sysfs, which shows quota groups since Linux 5.9.
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
	dir, err := tree.OpenDir(int(parent.Fd()), name)
	if err != nil {
		return err
	}
	defer dir.Close()
	if err := dir.Chmod(0o700); err != nil {
		return err
	}
	return limitOwnQgroup(dir, size)
}

// dropQgroup removes the limit, because nothing can be removed from a full subvolume. The
// kernel removes the group itself some time after the subvolume. Before Linux 6.11 the
// empty group remains, and it cannot be removed while the subvolume exists.
func dropQgroup(dir *os.File) error {
	if is, err := isSubvolume(dir); err != nil || !is {
		return err
	}
	err := limitOwnQgroup(dir, noLimit)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTCONN) { // quotas have been turned off since then
		return nil
	}
	return err
}

func isSubvolume(dir *os.File) (bool, error) {
	var fs unix.Statfs_t
	var stat unix.Stat_t
	if err := errors.Join(unix.Fstatfs(int(dir.Fd()), &fs), unix.Fstat(int(dir.Fd()), &stat)); err != nil {
		return false, fmt.Errorf("inspect %s: %w", dir.Name(), err)
	}
	return fs.Type == unix.BTRFS_SUPER_MAGIC && stat.Ino == subvolumeInode, nil
}

// limitOwnQgroup limits the subvolume that contains dir to size bytes.
func limitOwnQgroup(dir *os.File, size uint64) error {
	limits := struct{ group, flags, referenced, _, _, _ uint64 }{flags: limitReferenced, referenced: size}
	if err := ioctl(dir.Fd(), qgroupLimit, unsafe.Pointer(&limits)); err != nil {
		return fmt.Errorf("limit its quota group: %w", err)
	}
	return nil
}
