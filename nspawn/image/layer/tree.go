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

// tree is the directory unpacked into. Every path is resolved by the kernel as
// in a chroot to it (openat2(2), RESOLVE_IN_ROOT), up to the last component but
// one; entries are made by their name in the directory this leads to.
type tree struct {
	root int

	// Entries of one directory usually follow one another, so the last one stays
	// open. Nothing is ever renamed, so it can not have moved out of the tree.
	dir     int
	dirPath string // "": none is open
	stale   bool   // dirPath may lead elsewhere by now
}

// entryAt is a name in an open directory.
type entryAt struct {
	dir  int
	name string
}

// cleanName returns the name of an entry as a path relative to the tree, "."
// for the tree itself.
func cleanName(name string) (string, error) {
	if slices.Contains(strings.Split(name, "/"), "..") {
		return "", errors.New(`its name has a ".."`)
	}
	if name == "" {
		return "", errors.New("its name is empty")
	}
	return path.Join(".", name), nil
}

// split cuts a path before its last component. The parent of one component is
// ".". It does not touch what comes before, which symbolic links may give a
// meaning.
func split(p string) (parent, name string) {
	p = strings.TrimRight(p, "/")
	cut := strings.LastIndexByte(p, '/')
	if parent = p[:cut+1]; parent == "" {
		parent = "."
	}
	return parent, p[cut+1:]
}

// locate returns the place of the entry at p. It makes the directories above.
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

// maxTries is how often a path with `..`, from a symbolic link, is tried while
// things are moved or mounted elsewhere on the host, see EAGAIN in openat2(2).
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

// maxLinks is how many symbolic links to missing directories are followed one
// after the other, as many as the kernel follows (path_resolution(7)).
const maxLinks = 40

// openAll opens the directory at p and makes what is missing on the way, where
// symbolic links lead, as mkdir -p in a chroot would. links have been followed
// to come to p.
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

// makeMissing makes a directory that has no entry, or not yet. parent is the path
// of the directory above.
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
	return err // of anything else the caller gets to know when it opens it
}

// followMissing makes the directory a symbolic link leads to.
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

// path returns a path for system calls that take no directory and name.
func (s entryAt) path() string {
	return fmt.Sprintf("/proc/self/fd/%d/%s", s.dir, s.name)
}

// makeWay makes something at s, and again with what was there out of the way.
func (u *unpacker) makeWay(s entryAt, makeIt func() error) error {
	err := makeIt()
	if !errors.Is(err, unix.EEXIST) {
		return err
	}
	if err := u.remove(s); err != nil {
		return err
	}
	return makeIt()
}

// remove removes what is at s, a directory with all that is in it.
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
