// Package tree removes directory trees whose contents are not trusted.
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

// Attributes that prevent even root from removing a file (linux/fs.h).
const (
	flagImmutable  = 0x10
	flagAppendOnly = 0x20
)

// Remove removes dir and everything in it, whoever created it. It is not an error if dir
// does not exist.
//
// Remove follows no symbolic link and never removes files of another mount: if there is a
// mount at or below dir, it removes nothing. It can remove immutable files, which a
// machine without a user namespace can create. It can also remove directories that are
// nested deeper than any limit on path lengths, open files or recursion.
func Remove(dir string) error {
	dir = filepath.Clean(dir) // otherwise a trailing slash would make the kernel follow a symbolic link
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
	return untilEmpty(func() error {
		if err := r.each(top, r.remove); err != nil {
			return err
		}
		return retryWithoutAttributes(top, ".", func() error { return unix.Rmdir(dir) })
	})
}

// attempts is how often a directory is emptied. Whoever writes to one that is being
// removed does not do so for long, and finds it gone then.
const attempts = 100

// untilEmpty calls remove, which empties a directory and removes it, again while somebody
// has put something in it in between.
func untilEmpty(remove func() error) error {
	err := remove()
	for n := 1; errors.Is(err, unix.ENOTEMPTY) && n < attempts; n++ {
		err = remove()
	}
	return err
}

// refuseMounts returns an error if there are mounts in the tree. It is called before
// anything is removed. A mount that appears later stops the removal with EBUSY.
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

// remover keeps the tree flat while it removes it: a directory that is not empty is moved
// up into top and emptied there.
type remover struct {
	top   *os.File
	moved int // number of names used so far
}

// remove removes an entry of top. If the entry is a directory, directories in it are
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
	return untilEmpty(func() error {
		if err := r.each(dir, r.moveUp); err != nil {
			return err
		}
		return unlink(top, name)
	})
}

// moveUp removes an entry of dir. A directory that is not empty is moved to top instead.
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

// each calls take for every entry of dir until dir is empty. take removes the entry. It is
// not an error if another process, which removes the tree as well, was faster.
func (r *remover) each(dir *os.File, take func(dir *os.File, name string) error) error {
	for {
		// Start again each time: file systems differ in where a listing continues after
		// removals.
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
			if err := take(dir, name); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return fmt.Errorf("entry %q: %w", name, err)
			}
		}
	}
}

// unlink removes an entry of dir that is a file or an empty directory. A mount point
// fails with EBUSY.
func unlink(dir *os.File, name string) error {
	return retryWithoutAttributes(dir, name, func() error {
		err := unix.Unlinkat(int(dir.Fd()), name, 0)
		if errors.Is(err, unix.EISDIR) {
			err = unix.Unlinkat(int(dir.Fd()), name, unix.AT_REMOVEDIR)
		}
		return err
	})
}

// retryWithoutAttributes calls op, which removes or moves the entry name of dir. If the
// entry's attributes or those of dir forbid it, the attributes are cleared and op is
// called again.
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

// clearAttributes clears the attributes that forbid the removal of a file. It ignores
// errors, because the removal will fail then.
func clearAttributes(fd int) {
	flags, err := unix.IoctlGetInt(fd, unix.FS_IOC_GETFLAGS)
	if err == nil && flags&(flagImmutable|flagAppendOnly) != 0 {
		_ = unix.IoctlSetPointerInt(fd, unix.FS_IOC_SETFLAGS, flags&^(flagImmutable|flagAppendOnly))
	}
}

// openPlain opens the entry name of dir if it is a regular file or a directory. Other
// files have no attributes, and opening a device node or a FIFO can have side effects.
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

// OpenDir opens the directory name. name may be a path only if at is AT_FDCWD. A symbolic
// link is refused and, unless at is AT_FDCWD, a mount point too.
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
