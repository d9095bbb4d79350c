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

// The quotas of btrfs count what is in a subvolume, which has a quota group of
// its own ID. See linux/btrfs.h.

const (
	subvolumeCreate = 0x5000940e // BTRFS_IOC_SUBVOL_CREATE
	qgroupLimit     = 0x8030942b // BTRFS_IOC_QGROUP_LIMIT
	fsInfo          = 0x8400941f // BTRFS_IOC_FS_INFO
	limitReferenced = 1          // BTRFS_QGROUP_LIMIT_MAX_RFER
	subvolumeInode  = 256        // BTRFS_FIRST_FREE_OBJECTID, of a subvolume's root
)

const noLimit = math.MaxUint64 // CLEAR_VALUE in btrfs_limit_qgroup

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

// dropQgroup ends the limit, as nothing can be removed from a full subvolume. The
// group itself goes with the subvolume, some time after it; before Linux 6.11 it
// stays, empty, and cannot be removed as long as there is the subvolume.
func dropQgroup(dir *os.File) error {
	if is, err := isSubvolume(dir); err != nil || !is {
		return err
	}
	err := limitOwnQgroup(dir, noLimit)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTCONN) { // quotas were turned off meanwhile
		return nil
	}
	return err
}

func isSubvolume(dir *os.File) (bool, error) {
	var fs unix.Statfs_t
	var stat unix.Stat_t
	if err := errors.Join(unix.Fstatfs(int(dir.Fd()), &fs), unix.Fstat(int(dir.Fd()), &stat)); err != nil {
		return false, fmt.Errorf("look at %s: %w", dir.Name(), err)
	}
	return fs.Type == unix.BTRFS_SUPER_MAGIC && stat.Ino == subvolumeInode, nil
}

// limitOwnQgroup limits the subvolume that dir is in, to bytes.
func limitOwnQgroup(dir *os.File, size uint64) error {
	limits := struct{ group, flags, referenced, _, _, _ uint64 }{flags: limitReferenced, referenced: size}
	if err := ioctl(dir.Fd(), qgroupLimit, unsafe.Pointer(&limits)); err != nil {
		return fmt.Errorf("limit its quota group: %w", err)
	}
	return nil
}
