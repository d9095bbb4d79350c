package mounts

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"
)

// Open opens a path of the host without side effects (O_PATH). If beneath is not empty,
// path must lie below that directory, and no component of path after it may be a symbolic
// link: a process that can write there could redirect a link at any time. After Open, use
// the returned file, and the path only in messages.
func Open(path, beneath string) (*os.File, error) {
	how := unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_NO_MAGICLINKS}
	if beneath == "" {
		return openAt(unix.AT_FDCWD, path, path, how)
	}
	name, err := filepath.Rel(beneath, path)
	if err != nil || !filepath.IsLocal(name) {
		return nil, fmt.Errorf("open %s: it is not below %s", path, beneath)
	}
	top, err := openAt(unix.AT_FDCWD, beneath, beneath, how)
	if err != nil {
		return nil, err
	}
	defer top.Close()
	return OpenBeneath(top, name, 0)
}

// OpenBeneath opens a path relative to a directory. The path cannot leave the directory
// or pass a symbolic link. flags are added to O_PATH.
func OpenBeneath(dir *os.File, name string, flags uint64) (*os.File, error) {
	return openAt(int(dir.Fd()), name, filepath.Join(dir.Name(), name), unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_CLOEXEC | flags,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	})
}

func openAt(at int, name, title string, how unix.OpenHow) (*os.File, error) {
	fd, err := unix.Openat2(at, name, &how)
	for errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) { // a file was renamed at the same time
		fd, err = unix.Openat2(at, name, &how)
	}
	if errors.Is(err, unix.ELOOP) && how.Resolve&unix.RESOLVE_NO_SYMLINKS != 0 {
		return nil, fmt.Errorf("open %s: it is a symbolic link or lies behind one, which may be redirected at any time; use a path without symbolic links: %w", title, err)
	}
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", title, err)
	}
	return os.NewFile(uintptr(fd), title), nil
}

// Copy returns a detached copy of the mount that holds an open file, from that file
// downwards, with all mounts below it. Later mounts in the original do not appear in the
// copy, nor the other way round.
func Copy(file *os.File) (*os.File, error) { return clone(file, unix.AT_RECURSIVE) }

// CopyOne is like Copy, but leaves out the mounts below. Layers of an overlay need that.
func CopyOne(file *os.File) (*os.File, error) { return clone(file, 0) }

func clone(file *os.File, recursive uint) (*os.File, error) {
	fd, err := unix.OpenTree(int(file.Fd()), "", unix.AT_EMPTY_PATH|recursive|unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("copy the mount of %s: %w", file.Name(), err)
	}
	tree := os.NewFile(uintptr(fd), file.Name())
	if err := set(tree, unix.MountAttr{Propagation: unix.MS_PRIVATE}); err != nil {
		tree.Close()
		return nil, fmt.Errorf("make the copy of mount %s private: %w", file.Name(), err)
	}
	return tree, nil
}

// ForbidLinks makes following a symbolic link in a directory, or in a mount below it,
// fail with ELOOP for every process on the host. Reading a link's target still works. If
// the directory is the root of a mount, ForbidLinks changes that mount; otherwise it
// mounts the directory on itself.
func ForbidLinks(dir *os.File) error {
	isRoot, err := isRoot(dir)
	if err != nil {
		return err
	}
	forbid := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_NOSYMFOLLOW}
	if isRoot {
		err = set(dir, forbid)
	} else {
		err = mountOnItself(dir, forbid)
	}
	if err != nil {
		return fmt.Errorf("forbid following symbolic links in %s (this needs Linux 5.14): %w", dir.Name(), err)
	}
	return nil
}

// mountOnItself mounts a directory on itself, like mount(8) with --rbind. Later mounts
// and unmounts below it happen in both mounts.
func mountOnItself(dir *os.File, attr unix.MountAttr) error {
	fd, err := unix.OpenTree(int(dir.Fd()), "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE|unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return err
	}
	tree := os.NewFile(uintptr(fd), dir.Name())
	defer tree.Close()
	if err := set(tree, attr); err != nil {
		return err
	}
	return Attach(tree, dir)
}

// AllowLinks removes the effect of ForbidLinks, or of the same option set by an operator,
// from a detached copy of a mount.
func AllowLinks(tree *os.File) error {
	if err := set(tree, unix.MountAttr{Attr_clr: unix.MOUNT_ATTR_NOSYMFOLLOW}); err != nil {
		return fmt.Errorf("allow following symbolic links in the copy of mount %s: %w", tree.Name(), err)
	}
	return nil
}

// SetReadOnly makes a mount, and all mounts below it, read-only.
func SetReadOnly(tree *os.File) error {
	if err := set(tree, unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}); err != nil {
		return fmt.Errorf("make mount %s read-only: %w", tree.Name(), err)
	}
	return nil
}

func set(tree *os.File, attr unix.MountAttr) error {
	return unix.MountSetattr(int(tree.Fd()), "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, &attr)
}

// Attach mounts a detached tree on an open file or directory.
func Attach(tree, at *os.File) error {
	err := unix.MoveMount(int(tree.Fd()), "", int(at.Fd()), "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH)
	if err != nil {
		return fmt.Errorf("mount %s at %s: %w", tree.Name(), at.Name(), err)
	}
	return nil
}

// Tmpfs returns a new file system in memory as a detached mount, with options of tmpfs(5)
// and attributes of fsmount(2) (MOUNT_ATTR_…).
func Tmpfs(options map[string]string, attributes int) (*os.File, error) {
	fs, err := unix.Fsopen("tmpfs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("open tmpfs: %w", err)
	}
	defer unix.Close(fs)
	for _, name := range slices.Sorted(maps.Keys(options)) {
		if err := unix.FsconfigSetString(fs, name, options[name]); err != nil {
			return nil, fmt.Errorf("set %s=%s of tmpfs: %w", name, options[name], err)
		}
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return nil, fmt.Errorf("make tmpfs: %w", err)
	}
	tree, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, attributes)
	if err != nil {
		return nil, fmt.Errorf("mount tmpfs: %w", err)
	}
	return os.NewFile(uintptr(tree), "tmpfs"), nil
}
