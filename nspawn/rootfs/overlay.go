// Package rootfs makes the root file system of a machine: a copy-on-write
// overlay whose layers are ID-mapped mounts.
//
// Files keep their plain owners on disk (0, 33, 1000, …) and appear in the
// merged tree shifted by the UID base of the machine. Nothing is ever chowned,
// so a mount takes the same few milliseconds whatever the size of the image,
// one image serves every machine, and a machine may come back with another UID
// base. systemd-nspawn runs on the merged tree with --private-users=BASE:65536
// --private-users-ownership=off: it can not ID-map a finished overlay itself
// (EINVAL).
//
// Needs kernel 5.19, the first whose overlayfs takes ID-mapped layers, and
// layers on a file system that can be ID-mapped.
package rootfs

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// RangeSize is the number of UIDs, and of GIDs, a machine has.
const RangeSize = 65536

// maxLayers is the kernel's OVL_MAX_STACK.
const maxLayers = 500

// Overlay describes the root file system of one machine.
type Overlay struct {
	Lower   []string // read-only layers, the topmost first
	RW      string   // directory on a real file system that takes the changes, in upper/
	Memory  uint64   // bytes of a tmpfs of the overlay's own that takes them instead, and ends with it; 0: RW does
	Target  string   // where the merged tree appears; made if missing
	UIDBase uint32   // host UID of the machine's root, a multiple of RangeSize; 0: no user namespace
}

// Mount makes the merged tree appear at Target. Upon an error nothing stays
// mounted.
//
// RW should lie in a directory only root may enter: a setuid-root file of the
// machine is owned by host root in there.
func (o Overlay) Mount() error {
	if err := o.validate(); err != nil {
		return fmt.Errorf("mount root: %w", err)
	}
	if err := o.prepare(); err != nil {
		return fmt.Errorf("prepare root %s: %w", o.Target, err)
	}
	tree, err := o.assemble()
	if err != nil {
		return fmt.Errorf("assemble root %s: %w", o.Target, err)
	}
	defer unix.Close(tree)
	if err := refuseReadOnly(tree); err != nil {
		return fmt.Errorf("assemble root %s: %w", o.Target, err)
	}
	if err := unix.MoveMount(tree, "", unix.AT_FDCWD, o.Target, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("attach root to %s: %w", o.Target, err)
	}
	return nil
}

// Unmount takes the merged tree away from target. It is no error if nothing is
// mounted there.
func Unmount(target string) error {
	err := unix.Unmount(target, unix.UMOUNT_NOFOLLOW)
	if errors.Is(err, unix.EBUSY) {
		// Someone outside the machine has a file of it open, say an operator's
		// shell, or a mount namespace is just being copied (for instance by
		// another Mount). That must not keep a dead machine's root in the way:
		// detach it now, the kernel frees it with the last user.
		err = unix.Unmount(target, unix.UMOUNT_NOFOLLOW|unix.MNT_DETACH)
	}
	switch {
	case err == nil, errors.Is(err, fs.ErrNotExist):
		return nil
	case errors.Is(err, unix.EINVAL): // umount(2): target is not a mount point
		return nil
	}
	return fmt.Errorf("unmount root %s: %w", target, err)
}

func (o Overlay) validate() error {
	if len(o.Lower) == 0 {
		return errors.New("no lower layer")
	}
	if len(o.Lower) > maxLayers {
		return fmt.Errorf("%d lower layers, overlayfs takes %d", len(o.Lower), maxLayers)
	}
	dirs := append([]string{o.Target}, o.Lower...)
	if o.Memory == 0 {
		dirs = append(dirs, o.RW)
	}
	for _, dir := range dirs {
		if !filepath.IsAbs(dir) {
			return fmt.Errorf("path %q is not absolute", dir)
		}
	}
	if o.UIDBase%RangeSize != 0 {
		return fmt.Errorf("UID base %d is not a multiple of %d", o.UIDBase, RangeSize)
	}
	return nil
}

// prepare makes the directories that are still missing and refuses a target
// that is in use.
func (o Overlay) prepare() error {
	if err := os.MkdirAll(o.Target, 0o755); err != nil {
		return err
	}
	mounted, err := Mounted(o.Target)
	if err != nil {
		return err
	}
	if mounted {
		return fmt.Errorf("something is mounted there already: %w", unix.EBUSY)
	}
	if o.Memory > 0 {
		return nil
	}
	return o.prepareRW(o.RW, 0)
}

// prepareRW makes rw/work, and rw/upper, which looks like the root of the topmost
// layer, with its owner shifted: the merged root shows the attributes of upper.
// That gets its name last, so an upper/ left by an interrupted try is not taken
// for a finished one.
func (o Overlay) prepareRW(rw string, shift uint32) error {
	if err := os.MkdirAll(filepath.Join(rw, "work"), 0o700); err != nil {
		return err
	}
	upper := filepath.Join(rw, "upper")
	if _, err := os.Lstat(upper); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	var root unix.Stat_t
	if err := unix.Stat(o.Lower[0], &root); err != nil {
		return fmt.Errorf("stat layer %s: %w", o.Lower[0], err)
	}
	raw := upper + ".new"
	if err := os.MkdirAll(raw, 0o700); err != nil {
		return err
	}
	if err := os.Chown(raw, int(root.Uid+shift), int(root.Gid+shift)); err != nil {
		return err
	}
	if err := unix.Chmod(raw, root.Mode&0o7777); err != nil {
		return fmt.Errorf("chmod %s: %w", raw, err)
	}
	return os.Rename(raw, upper)
}

// Mounted tells whether a mount's root is at path (statx attribute since
// kernel 5.8).
func Mounted(path string) (bool, error) {
	var stat unix.Statx_t
	err := unix.Statx(unix.AT_FDCWD, path, unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT, 0, &stat)
	if err != nil {
		return false, fmt.Errorf("stat %s: %w", path, err)
	}
	return stat.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0, nil
}

// refuseReadOnly catches overlayfs giving up on writing without an error, as it
// does when it can not use its work directory.
func refuseReadOnly(tree int) error {
	var stat unix.Statfs_t
	if err := unix.Fstatfs(tree, &stat); err != nil {
		return fmt.Errorf("stat overlay: %w", err)
	}
	if stat.Flags&unix.ST_RDONLY != 0 {
		return errors.New("overlay came up read-only, the kernel log tells why")
	}
	return nil
}
