package layer

import (
	"archive/tar"
	"errors"
	"fmt"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// maxID is the highest UID and GID in a machine, whose range has 65536 of them.
const maxID = 65535

// setAttributes sets owner, mode, extended attributes and time of an entry. The order
// matters: changing the owner clears setuid and setgid bits and security.capability
// (chown(2), capabilities(7)).
func setAttributes(at entryAt, hdr *tar.Header) error {
	if hdr.Uid < 0 || hdr.Uid > maxID || hdr.Gid < 0 || hdr.Gid > maxID {
		return fmt.Errorf("owner %d:%d is not in the range of a machine, 0 to %d "+
			"(what systemd-nspawn -U has run is changed back by its --private-users=0 --private-users-ownership=chown)", hdr.Uid, hdr.Gid, maxID)
	}
	if err := chown(at, hdr.Uid, hdr.Gid); err != nil {
		return err
	}
	if hdr.Typeflag != tar.TypeSymlink {
		if err := chmod(at, uint32(hdr.Mode&0o7777)); err != nil {
			return err
		}
	}
	if err := setXattrs(at, hdr); err != nil {
		return err
	}
	if hdr.Typeflag == tar.TypeDir {
		return nil
	}
	return setTime(at, hdr.ModTime)
}

// setDefaults sets owner and mode of a directory without an entry of its own, regardless
// of the umask and of a setgid parent directory.
func setDefaults(dir entryAt) error {
	if err := chown(dir, 0, 0); err != nil {
		return err
	}
	return chmod(dir, 0o755)
}

func chown(at entryAt, uid, gid int) error {
	if err := unix.Fchownat(at.dir, at.name, uid, gid, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("change owner to %d:%d: %w", uid, gid, err)
	}
	return nil
}

// chmod changes the mode of an entry that is not a symbolic link.
func chmod(at entryAt, mode uint32) error {
	if err := unix.Fchmodat(at.dir, at.name, mode, 0); err != nil {
		return fmt.Errorf("change mode to %04o: %w", mode, err)
	}
	return nil
}

func setTime(at entryAt, t time.Time) error {
	stamp, err := unix.TimeToTimespec(t)
	if err != nil {
		return fmt.Errorf("set time to %s: %w", t, err)
	}
	err = unix.UtimesNanoAt(at.dir, at.name, []unix.Timespec{stamp, stamp}, unix.AT_SYMLINK_NOFOLLOW)
	if err != nil {
		return fmt.Errorf("set time to %s: %w", t, err)
	}
	return nil
}

// xattrRecord is the prefix of PAX records for extended attributes, a convention of star
// that GNU tar and all image builders follow.
const xattrRecord = "SCHILY.xattr."

func setXattrs(at entryAt, hdr *tar.Header) error {
	for record, value := range hdr.PAXRecords {
		name, ok := strings.CutPrefix(record, xattrRecord)
		if !ok || name != "security.capability" && !strings.HasPrefix(name, "user.") {
			continue
		}
		err := unix.Lsetxattr(at.path(), name, []byte(value), 0)
		if err != nil && (name == "security.capability" || !refusesUserXattr(err)) {
			return fmt.Errorf("set extended attribute %.200q: %w", name, err)
		}
	}
	return nil
}

// refusesUserXattr reports whether user.* attributes are refused by the file system, or
// for this type of file (xattr(7): only regular files and directories can have them).
func refusesUserXattr(err error) bool {
	return errors.Is(err, unix.ENOTSUP) || errors.Is(err, unix.EPERM)
}
