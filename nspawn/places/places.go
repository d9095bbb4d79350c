// Package places secures the places in a root file system to which systemd-nspawn writes
// as root of the host, before it confines itself to that root. systemd-nspawn reaches
// many of them by plain paths: if the image had a symbolic link there, systemd-nspawn
// would follow it anywhere on the host.
//
// The package is small because it is part of the program that starts systemd-nspawn.
package places

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// directories lists parents before their children, so that each parent is safe before it
// is used.
var directories = []struct {
	name string
	mode uint32 // mode of a missing directory that is created; 0: it may be missing
}{
	{"dev", 0o755},
	{"proc", 0o755},
	{"sys", 0o755},
	{"run", 0o755},
	{"tmp", 0o1777},
	{"root", 0o700},
	{"etc", 0o755},
	{"var", 0o755},
	{"var/log", 0},
	{"var/log/journal", 0},
}

// machineID must be a regular file or missing: systemd-nspawn 252 reads it by its plain
// path.
const machineID = "etc/machine-id"

// Secure checks that each place in the root is a real directory, or is missing if that is
// safe. If own is set, no other machine uses the root: anything else at a place is then
// replaced by a directory that belongs to owner, and missing directories are created.
// Otherwise, for example with an image that is run in place, Secure returns an error that
// names the place.
func Secure(root *os.File, own bool, owner int) error {
	for _, place := range directories {
		mode, err := kind(root, place.name)
		switch {
		case err != nil:
			return fmt.Errorf("inspect /%s of the machine: %w", place.name, err)
		case mode == unix.S_IFDIR:
			continue
		case mode == 0 && (place.mode == 0 || !own):
			continue
		case !own:
			return refuse(place.name, "a directory")
		}
		if err := replace(root, place.name, max(place.mode, 0o755), mode != 0, owner); err != nil {
			return fmt.Errorf("make /%s of the machine a directory: %w", place.name, err)
		}
	}
	mode, err := kind(root, machineID)
	switch {
	case err != nil:
		return fmt.Errorf("inspect /%s of the machine: %w", machineID, err)
	case mode == 0 || mode == unix.S_IFREG:
		return nil
	case !own:
		return refuse(machineID, "a regular file")
	}
	return unlink(root, machineID)
}

func refuse(name, what string) error {
	return fmt.Errorf("/%s of the image is not %s: systemd-nspawn would follow it out of the image; put %s there, or set ephemeral = true", name, what, what)
}

// kind returns the file type of name, or 0 if it does not exist. It follows no symbolic
// link; the parents of name are known to be directories.
func kind(root *os.File, name string) (uint32, error) {
	dir, err := parent(root, name)
	if errors.Is(err, unix.ENOENT) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	defer dir.Close()
	var stat unix.Stat_t
	err = unix.Fstatat(int(dir.Fd()), filepath.Base(name), &stat, unix.AT_SYMLINK_NOFOLLOW)
	if errors.Is(err, unix.ENOENT) {
		return 0, nil
	}
	return stat.Mode & unix.S_IFMT, err
}

func parent(root *os.File, name string) (*os.File, error) {
	how := unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	}
	fd, err := unix.Openat2(int(root.Fd()), filepath.Dir(name), &how)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), filepath.Dir(name)), nil
}

func replace(root *os.File, name string, mode uint32, exists bool, owner int) error {
	if exists {
		if err := unlink(root, name); err != nil {
			return err
		}
	}
	dir, err := parent(root, name)
	if err != nil {
		return err
	}
	defer dir.Close()
	at, base := int(dir.Fd()), filepath.Base(name)
	if err := unix.Mkdirat(at, base, mode); err != nil {
		return err
	}
	if err := unix.Fchownat(at, base, owner, owner, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	return unix.Fchmodat(at, base, mode, 0) // independent of the umask; no other process uses this root
}

func unlink(root *os.File, name string) error {
	dir, err := parent(root, name)
	if err != nil {
		return err
	}
	defer dir.Close()
	return unix.Unlinkat(int(dir.Fd()), filepath.Base(name), 0)
}
