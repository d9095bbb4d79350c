package layer

import (
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// tree is the directory into which a stream is unpacked. The kernel resolves the parent
// of every path as in a chroot to the tree (openat2(2), RESOLVE_IN_ROOT). Entries are
// created by name in the directory that this returns.
type tree struct {
	root int

	// Entries of one directory usually follow one another, so the last directory stays
	// open. Nothing is ever renamed, so it cannot have moved out of the tree.
	dir     int
	dirPath string // "": no directory is open
	stale   bool   // dirPath may lead to another directory by now
}

// entryAt is a name in an open directory.
type entryAt struct {
	dir  int
	name string
}

// cleanName returns the name of an entry as a path relative to the tree, which is "." for
// the tree itself.
func cleanName(name string) (string, error) {
	if slices.Contains(strings.Split(name, "/"), "..") {
		return "", errors.New(`its name contains ".."`)
	}
	if name == "" {
		return "", errors.New("its name is empty")
	}
	return path.Join(".", name), nil
}

// split splits a path before its last component. The parent of a single component is ".".
// split does not clean the parent, because symbolic links may give its components a
// meaning.
func split(p string) (parent, name string) {
	p = strings.TrimRight(p, "/")
	cut := strings.LastIndexByte(p, '/')
	if parent = p[:cut+1]; parent == "" {
		parent = "."
	}
	return parent, p[cut+1:]
}

// locate returns the place of the entry at p. It creates missing parent directories.
func (u *unpacker) locate(p string) (entryAt, error) {
	parent, name := split(p)
	if u.stale || u.dirPath != parent {
		u.forget()
		dir, err := u.openAll(parent, 0)
		if err != nil {
			return entryAt{}, fmt.Errorf("open directory %.200q: %w", parent, err)
		}
		u.dir, u.dirPath = dir, parent
	}
	return entryAt{u.dir, name}, nil
}

func (t *tree) forget() {
	if t.dirPath != "" {
		unix.Close(t.dir)
	}
	t.dirPath, t.stale = "", false
}

// maxTries limits the attempts to open a path with `..`, which comes from a symbolic
// link. An attempt fails while files are moved or mounted elsewhere on the host (EAGAIN
// in openat2(2)).
const maxTries = 1000

// open opens the directory at p.
func (t *tree) open(p string, flags uint64) (fd int, err error) {
	how := unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC | flags,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_XDEV,
	}
	for range maxTries {
		if fd, err = unix.Openat2(t.root, p, &how); err != unix.EAGAIN {
			break
		}
	}
	return fd, err
}

// maxLinks is the number of symbolic links to missing directories that are followed in a
// row, the same as in the kernel (path_resolution(7)).
const maxLinks = 40

// openAll opens the directory at p and creates missing directories on the way, like mkdir
// -p in a chroot, also where symbolic links lead. links is the number of links that have
// been followed to reach p.
func (u *unpacker) openAll(p string, links int) (int, error) {
	dir, err := u.open(p, 0)
	if !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENOTDIR) {
		return dir, err
	}
	parent, name := split(p)
	above, err := u.openAll(parent, links)
	if err != nil {
		return -1, err
	}
	defer unix.Close(above)
	if err := u.makeMissing(entryAt{above, name}, parent, links); err != nil {
		return -1, err
	}
	return u.open(p, 0)
}

// makeMissing creates a directory that has no entry, or whose entry follows later. parent
// is the path of its parent directory.
func (u *unpacker) makeMissing(at entryAt, parent string, links int) error {
	there, err := at.stat()
	switch {
	case errors.Is(err, unix.ENOENT), err == nil && isWhiteout(there):
		if err := u.count(); err != nil {
			return err
		}
		if err := u.makeDirectory(at); err != nil {
			return err
		}
		return setDefaults(at)
	case err == nil && there.Mode&unix.S_IFMT == unix.S_IFLNK:
		return u.followMissing(at, parent, links+1)
	}
	return err // the caller sees other problems when it opens the directory
}

// followMissing creates the directory to which a symbolic link leads.
func (u *unpacker) followMissing(link entryAt, parent string, links int) error {
	if links > maxLinks {
		return unix.ELOOP
	}
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(link.dir, link.name, buf)
	if err != nil {
		return fmt.Errorf("read symbolic link %q: %w", link.name, err)
	}
	target := string(buf[:n])
	if !path.IsAbs(target) {
		target = parent + "/" + target
	}
	dir, err := u.openAll(target, links)
	if err != nil {
		return err
	}
	return unix.Close(dir)
}

func (s entryAt) stat() (unix.Stat_t, error) {
	var stat unix.Stat_t
	err := unix.Fstatat(s.dir, s.name, &stat, unix.AT_SYMLINK_NOFOLLOW)
	if err != nil {
		err = fmt.Errorf("stat: %w", err)
	}
	return stat, err
}

// path returns a path for system calls that do not accept a directory and a name.
func (s entryAt) path() string {
	return fmt.Sprintf("/proc/self/fd/%d/%s", s.dir, s.name)
}

// makeReplacing calls makeIt, which creates a file at s. If there is a file already, makeReplacing
// removes it and calls makeIt again.
func (u *unpacker) makeReplacing(s entryAt, makeIt func() error) error {
	err := makeIt()
	if !errors.Is(err, unix.EEXIST) {
		return err
	}
	if err := u.remove(s); err != nil {
		return err
	}
	return makeIt()
}

// remove removes the file at s, or a directory with all of its contents.
func (t *tree) remove(s entryAt) error {
	if s.name == "." {
		return errors.New("the top of the tree can only be a directory")
	}
	t.stale = true
	if err := unix.Unlinkat(s.dir, s.name, 0); !errors.Is(err, unix.EISDIR) {
		if err != nil {
			return fmt.Errorf("replace: %w", err)
		}
		return nil
	}
	dir, err := os.OpenRoot(entryAt{s.dir, "."}.path())
	if err != nil {
		return fmt.Errorf("replace directory: %w", err)
	}
	defer dir.Close()
	if err := dir.RemoveAll(s.name); err != nil {
		return fmt.Errorf("replace directory: %w", err)
	}
	return nil
}
