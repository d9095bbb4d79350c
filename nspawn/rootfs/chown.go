package rootfs

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"nomad-driver-nspawn/nspawn/idmap"
	"nomad-driver-nspawn/nspawn/tree"
)

// chown gives a file, and all files below it on the same mount, to the machine whose IDs
// begin at base. Only the lower 16 bits of the current owner are used, so the tree may
// already be shifted to this or to another base. Files that disappear during the walk are
// skipped.
//
// It does the same as systemd-nspawn's --private-users-ownership=chown. That cannot be
// used with a read-only root, and loses file capabilities (252 to 262).
func chown(ctx context.Context, at int, name string, base uint32) error {
	isDir, err := chownEntry(at, name, base)
	if isDir && err == nil {
		err = chownIn(ctx, at, name, base)
	}
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EXDEV) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("entry %q: %w", name, err)
	}
	return nil
}

// HandOver gives dir and everything in it to the machine: files of host root become files
// of the machine's root, files of other users those of its users. It replaces an
// ID-mapped mount where there can be none.
func HandOver(ctx context.Context, dir *os.File, base uint32) error {
	if err := chown(ctx, int(dir.Fd()), ".", base); err != nil {
		return fmt.Errorf("hand over %s: %w", dir.Name(), err)
	}
	return nil
}

// chownIn calls chown for each entry of a directory.
func chownIn(ctx context.Context, at int, name string, base uint32) error {
	dir, err := tree.OpenDir(at, name)
	if err != nil {
		return err
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := chown(ctx, int(dir.Fd()), name, base); err != nil {
			return err
		}
	}
	return nil
}

// chownEntry changes the owner of one file, and the attributes that depend on the owner.
func chownEntry(at int, name string, base uint32) (isDir bool, err error) {
	file, err := unix.Openat2(at, name, &unix.OpenHow{
		Flags: unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC, Resolve: unix.RESOLVE_NO_XDEV,
	})
	if err != nil {
		return false, err
	}
	defer unix.Close(file)
	var stat unix.Stat_t
	if err := unix.Fstat(file, &stat); err != nil {
		return false, err
	}
	kind := stat.Mode & unix.S_IFMT
	if kind == unix.S_IFLNK {
		return false, chownFile(file, stat, base)
	}
	path := fmt.Sprintf("/proc/self/fd/%d", file)
	capabilities, err := getxattr(path, "security.capability")
	if err != nil {
		return false, err
	}
	if err := chownFile(file, stat, base); err != nil {
		return false, err
	}
	// Changing the owner clears setuid, setgid and capabilities (chown(2)).
	if kind == unix.S_IFREG && stat.Mode&(unix.S_ISUID|unix.S_ISGID) != 0 {
		if err := unix.Chmod(path, stat.Mode&0o7777); err != nil {
			return false, err
		}
	}
	if capabilities != nil {
		if err := unix.Setxattr(path, "security.capability", shiftCapabilities(capabilities, base), 0); err != nil {
			return false, fmt.Errorf("set capabilities: %w", err)
		}
	}
	return kind == unix.S_IFDIR, chownACLs(path, base)
}

func chownFile(file int, stat unix.Stat_t, base uint32) error {
	return unix.Fchownat(file, "", int(shift(stat.Uid, base)), int(shift(stat.Gid, base)), unix.AT_EMPTY_PATH)
}

func shift(id, base uint32) uint32 { return base | id%idmap.RangeSize }

// shiftCapabilities converts file capabilities of the host's root to those of the
// machine's root. The format is struct vfs_ns_cap_data of linux/capability.h, which adds
// the root of the user namespace.
func shiftCapabilities(value []byte, base uint32) []byte {
	const revision2, revision3 = 2, 3
	switch {
	case len(value) == 20 && value[3] == revision2:
		value = append(value, 0, 0, 0, 0)
		value[3] = revision3
	case len(value) != 24 || value[3] != revision3:
		return value // a format from before Linux 2.6.25
	}
	binary.LittleEndian.PutUint32(value[20:], shift(binary.LittleEndian.Uint32(value[20:]), base))
	return value
}

func chownACLs(path string, base uint32) error {
	for _, name := range []string{"system.posix_acl_access", "system.posix_acl_default"} {
		acl, err := getxattr(path, name)
		if err != nil {
			return err
		}
		if acl == nil {
			continue
		}
		shiftACL(acl, base)
		if err := unix.Setxattr(path, name, acl, 0); err != nil {
			return fmt.Errorf("set %s: %w", name, err)
		}
	}
	return nil
}

// shiftACL shifts the users and groups that are named in an ACL (linux/posix_acl_xattr.h:
// a version, then entries of tag, permissions and ID).
func shiftACL(acl []byte, base uint32) {
	const header, entry, user, group = 4, 8, 0x02, 0x08
	for i := header; i+entry <= len(acl); i += entry {
		if tag := binary.LittleEndian.Uint16(acl[i:]); tag == user || tag == group {
			id := acl[i+4:]
			binary.LittleEndian.PutUint32(id, shift(binary.LittleEndian.Uint32(id), base))
		}
	}
}

// getxattr returns an extended attribute, or nil if the file does not have it.
func getxattr(path, name string) ([]byte, error) {
	size, err := unix.Getxattr(path, name, nil)
	if errors.Is(err, unix.ENODATA) || errors.Is(err, unix.EOPNOTSUPP) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("get %s: %w", name, err)
	}
	value := make([]byte, size)
	size, err = unix.Getxattr(path, name, value)
	if err != nil {
		return nil, fmt.Errorf("get %s: %w", name, err)
	}
	return value[:size], nil
}
