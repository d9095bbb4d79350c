// Package tree removes directory trees that were made by whom it may.
package tree

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"

	"nomad-driver-nspawn/nspawn/mounts"
)

// Attributes that forbid a file's removal, even to root (linux/fs.h).
const (
	flagImmutable  = 0x10
	flagAppendOnly = 0x20
)

// Remove removes dir and all in it, made by whom it may. It is not an error if
// dir does not exist.
//
// It follows no symbolic link and never reaches into another mount: where
// something is mounted at or below dir, nothing is removed. It takes immutable
// files, which a machine without user namespace can make, and directories
// nested deeper than any limit on path lengths, open files or recursion.
func Remove(dir string) error {
	dir = filepath.Clean(dir) // with a slash at its end, a symbolic link would be followed
	if err := remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove %s: %w", dir, err)
	}
	return nil
}

func remove(dir string) error {
	top, err := OpenDir(unix.AT_FDCWD, dir)
	if err != nil {
		return err
	}
	defer top.Close()
	if err := refuseMounts(top); err != nil {
		return err
	}
	r := remover{top: top}
	if err := r.each(top, r.remove); err != nil {
		return err
	}
	return retryWithoutAttributes(top, ".", func() error { return unix.Rmdir(dir) })
}

// refuseMounts looks for mounts before anything is touched. One that comes
// later stops the removal by EBUSY.
func refuseMounts(top *os.File) error {
	path, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", top.Fd()))
	if err != nil {
		return err
	}
	point, err := mounts.At(path)
	if err != nil {
		return err
	}
	if point != "" {
		return fmt.Errorf("%s is still mounted: %w", point, unix.EBUSY)
	}
	return nil
}

// remover keeps a tree flat while it removes it: a directory that is not empty
// moves up into top, to be emptied there.
type remover struct {
	top   *os.File
	moved int // names used so far
}

// remove removes an entry of top. If it is a directory, directories in it are
// moved to top.
func (r *remover) remove(top *os.File, name string) error {
	err := unlink(top, name)
	if !errors.Is(err, unix.ENOTEMPTY) {
		return err
	}
	dir, err := OpenDir(int(top.Fd()), name)
	if err != nil {
		return err
	}
	defer dir.Close()
	if err := r.each(dir, r.moveUp); err != nil {
		return err
	}
	return unlink(top, name)
}

// moveUp removes an entry of dir, by moving it to top if it is a directory with
// something in it.
func (r *remover) moveUp(dir *os.File, name string) error {
	err := unlink(dir, name)
	for errors.Is(err, unix.ENOTEMPTY) || errors.Is(err, unix.EEXIST) {
		r.moved++
		err = retryWithoutAttributes(dir, name, func() error {
			return unix.Renameat2(int(dir.Fd()), name, int(r.top.Fd()), ".removing-"+strconv.Itoa(r.moved), unix.RENAME_NOREPLACE)
		})
	}
	return err
}

// each calls take, which removes the entry, for every entry of dir until there
// is none.
func (r *remover) each(dir *os.File, take func(dir *os.File, name string) error) error {
	for {
		// Start over each time: where a listing goes on after removals is up to
		// the file system.
		if _, err := dir.Seek(0, io.SeekStart); err != nil {
			return err
		}
		names, err := dir.Readdirnames(1024)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		for _, name := range names {
			if err := take(dir, name); err != nil {
				return fmt.Errorf("entry %q: %w", name, err)
			}
		}
	}
}

// unlink removes an entry of dir that is not a directory, or an empty
// directory. A mount point fails with EBUSY.
func unlink(dir *os.File, name string) error {
	return retryWithoutAttributes(dir, name, func() error {
		err := unix.Unlinkat(int(dir.Fd()), name, 0)
		if errors.Is(err, unix.EISDIR) {
			err = unix.Unlinkat(int(dir.Fd()), name, unix.AT_REMOVEDIR)
		}
		return err
	})
}

// retryWithoutAttributes does op, which removes or moves entry name of dir, and again without
// the file attributes that forbid it.
func retryWithoutAttributes(dir *os.File, name string, op func() error) error {
	err := op()
	if !errors.Is(err, unix.EPERM) {
		return err
	}
	clearAttributes(int(dir.Fd()))
	if entry, err := openPlain(dir, name); err == nil {
		clearAttributes(int(entry.Fd()))
		entry.Close()
	}
	return op()
}

// clearAttributes takes the attributes from a file that forbid its removal. Whether that
// worked shows in trying to remove it.
func clearAttributes(fd int) {
	flags, err := unix.IoctlGetInt(fd, unix.FS_IOC_GETFLAGS)
	if err == nil && flags&(flagImmutable|flagAppendOnly) != 0 {
		_ = unix.IoctlSetPointerInt(fd, unix.FS_IOC_SETFLAGS, flags&^(flagImmutable|flagAppendOnly))
	}
}

// openPlain opens entry name of dir if it is a regular file or a directory.
// Others have no attributes, and opening a device node or a FIFO can have
// effects.
func openPlain(dir *os.File, name string) (*os.File, error) {
	handle, err := unix.Openat(int(dir.Fd()), name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(handle)
	var stat unix.Stat_t
	if err := unix.Fstat(handle, &stat); err != nil {
		return nil, err
	}
	if kind := stat.Mode & unix.S_IFMT; kind != unix.S_IFREG && kind != unix.S_IFDIR {
		return nil, errors.New("neither file nor directory")
	}
	return os.Open(fmt.Sprintf("/proc/self/fd/%d", handle))
}

// OpenDir opens a directory at name, which may be a path only if at is
// AT_FDCWD. A symbolic link or a mount point fails.
func OpenDir(at int, name string) (*os.File, error) {
	how := unix.OpenHow{Flags: unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC}
	if at != unix.AT_FDCWD {
		how.Resolve = unix.RESOLVE_NO_XDEV
	}
	fd, err := unix.Openat2(at, name, &how)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), name), nil
}
