// Package mounts inspects, copies, attaches and removes mounts.
package mounts

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// Mount is a mount below a directory.
type Mount struct {
	Path   string // relative to the directory
	FSType string
}

// Below returns the mounts below dir, in the order in which they were mounted. dir is an
// absolute path without symbolic links.
func Below(dir string) ([]Mount, error) {
	table, err := read(func(m *mountinfo.Info) (skip, stop bool) { return !strings.HasPrefix(m.Mountpoint, dir+"/"), false })
	if err != nil {
		return nil, err
	}
	var below []Mount
	for _, m := range table {
		below = append(below, Mount{Path: strings.TrimPrefix(m.Mountpoint, dir+"/"), FSType: m.FSType})
	}
	return below, nil
}

// At returns a mount point at or below dir, or "" if there is none. dir is an absolute
// path without symbolic links.
func At(dir string) (string, error) {
	table, err := read(func(m *mountinfo.Info) (skip, stop bool) {
		found := strings.HasPrefix(m.Mountpoint+"/", dir+"/")
		return !found, found
	})
	if err != nil || len(table) == 0 {
		return "", err
	}
	return table[0].Mountpoint, nil
}

// FSType returns the type of the file system that holds path, or "unknown".
func FSType(path string) string {
	var stat unix.Statx_t
	if unix.Statx(unix.AT_FDCWD, path, 0, unix.STATX_MNT_ID, &stat) != nil {
		return "unknown"
	}
	table, err := read(func(m *mountinfo.Info) (skip, stop bool) {
		found := uint64(m.ID) == stat.Mnt_id
		return !found, found
	})
	if err != nil || len(table) == 0 {
		return "unknown"
	}
	return table[0].FSType
}

// read returns the mounts that the calling thread sees.
func read(filter mountinfo.FilterFunc) ([]*mountinfo.Info, error) {
	table, err := mountinfo.GetMounts(filter)
	if err != nil {
		return nil, fmt.Errorf("read mount table: %w", err)
	}
	return table, nil
}

// Clone returns a detached copy of the mount that holds dir, from dir downwards, without
// the mounts below it.
//
// Clone refuses symbolic links according to resolve (openat2(2)). The links in a path of
// a job were resolved when the path was permitted. A link that is found now was created
// since then, by a machine that may write to a parent directory.
func Clone(dir string, resolve uint64) (tree int, err error) {
	how := unix.OpenHow{Flags: unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: resolve}
	fd, err := unix.Openat2(unix.AT_FDCWD, dir, &how)
	if err == nil {
		defer unix.Close(fd)
		tree, err = unix.OpenTree(fd, "", unix.AT_EMPTY_PATH|unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	}
	if err != nil {
		return -1, err
	}
	return tree, nil
}

// IsPoint reports whether path is the root of a mount (statx attribute since Linux 5.8).
func IsPoint(path string) (bool, error) {
	var stat unix.Statx_t
	err := unix.Statx(unix.AT_FDCWD, path, unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT, 0, &stat)
	if err != nil {
		return false, fmt.Errorf("stat %s: %w", path, err)
	}
	return stat.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0, nil
}

// isRoot reports for an open directory what IsPoint reports for a path.
func isRoot(dir *os.File) (bool, error) {
	var stat unix.Statx_t
	if err := unix.Statx(int(dir.Fd()), "", unix.AT_EMPTY_PATH, 0, &stat); err != nil {
		return false, fmt.Errorf("stat %s: %w", dir.Name(), err)
	}
	return stat.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0, nil
}

// Unmount removes the mount at target. It is not an error if nothing is mounted there.
func Unmount(target string) error {
	err := unix.Unmount(target, unix.UMOUNT_NOFOLLOW)
	if errors.Is(err, unix.EBUSY) {
		// A process outside of the machine has one of its files open, for example an
		// operator's shell, or a mount namespace is being copied, for example for another
		// machine's root. That must not block the removal of a dead machine: detach the
		// mount now, and the kernel frees it with the last user.
		err = unix.Unmount(target, unix.UMOUNT_NOFOLLOW|unix.MNT_DETACH)
	}
	switch {
	case err == nil, errors.Is(err, fs.ErrNotExist):
		return nil
	case errors.Is(err, unix.EINVAL): // umount(2): target is not a mount point
		return nil
	}
	return fmt.Errorf("unmount %s: %w", target, err)
}
