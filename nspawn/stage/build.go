package stage

import (
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"nomad-driver-nspawn/nspawn/mounts"
)

// shown is a part of the host that is seen at the same path.
type shown struct {
	path     string
	writable bool
	optional bool
}

// attachDir is the sub-directory of a machine's own one that mounts are attached in.
const attachDir = "mounts"

// parts are what systemd-nspawn needs: programs and libraries, configuration, /sys for
// control groups, /dev for what it binds, the sockets of systemd, journald and dbus.
var parts = []shown{
	{path: "/usr"},
	{path: "/etc"},
	{path: "/sys", writable: true},
	{path: "/dev", writable: true},
	{path: "/run/systemd"},
	{path: "/run/dbus", optional: true},
}

// topLinks are directories or links to some in /usr, where they exist.
var topLinks = []string{"/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32"}

// procReadOnly are the files of /proc that change the host.
var procReadOnly = []string{"sys", "irq", "bus", "sysrq-trigger"}

// build makes the root of the namespace that this thread is in, and goes there.
func build(dir string) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("stop mount propagation: %w", err)
	}
	own, err := copyOf(shown{path: dir})
	if err != nil {
		return err
	}
	defer own.Close()
	if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0755,size=1m,nr_inodes=4096"); err != nil {
		return fmt.Errorf("mount tmpfs: %w", err)
	}
	if err := unix.Chdir(dir); err != nil {
		return fmt.Errorf("enter tmpfs: %w", err)
	}
	for _, part := range parts {
		if err := show(part); err != nil {
			return err
		}
	}
	if err := showTopLinks(); err != nil {
		return err
	}
	if err := showProc(); err != nil {
		return err
	}
	if err := attach(own, relative(dir)); err != nil {
		return err
	}
	if err := showResolvConf(); err != nil {
		return err
	}
	for path, mode := range map[string]string{
		"tmp": "mode=1777", "run/systemd/nspawn": "mode=0755", filepath.Join(relative(dir), attachDir): "mode=0755,nr_inodes=65536",
	} {
		if err := mountTmpfs(path, mode); err != nil {
			return err
		}
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("change root: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("leave the host's root: %w", err)
	}
	return unix.Chdir("/")
}

func mountTmpfs(path, options string) error {
	if err := os.MkdirAll(path, 0o755); err != nil && !errors.Is(err, unix.EROFS) {
		return err
	}
	if err := unix.Mount("tmpfs", path, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, options); err != nil {
		return fmt.Errorf("mount tmpfs at /%s: %w", path, err)
	}
	return nil
}

func relative(path string) string { return strings.TrimPrefix(path, "/") }

func show(part shown) error {
	tree, err := copyOf(part)
	if errors.Is(err, os.ErrNotExist) && part.optional {
		return nil
	}
	if err != nil {
		return err
	}
	defer tree.Close()
	return attach(tree, relative(part.path))
}

func copyOf(part shown) (*os.File, error) {
	file, err := mounts.Open(part.path, "")
	if err != nil {
		return nil, err
	}
	defer file.Close()
	tree, err := mounts.Copy(file)
	if err == nil && !part.writable {
		if err = mounts.SetReadOnly(tree); err != nil {
			tree.Close()
		}
	}
	return tree, err
}

// attach mounts a directory at a path of the new root, which is made.
func attach(tree *os.File, path string) error {
	if err := os.MkdirAll(path, 0o755); err != nil {
		return err
	}
	at, err := mounts.Open(path, "")
	if err != nil {
		return err
	}
	defer at.Close()
	return mounts.Attach(tree, at)
}

func showTopLinks() error {
	for _, path := range topLinks {
		target, err := os.Readlink(path)
		switch {
		case errors.Is(err, os.ErrNotExist):
		case err == nil:
			err = os.Symlink(target, relative(path))
		default: // a directory, where /usr is not merged
			err = show(shown{path: path})
		}
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("show %s: %w", path, err)
		}
	}
	return nil
}

// showProc shows the host's /proc with what changes the host read-only. The kernel lets
// a user namespace mount a /proc of its own only where it sees one whole: that is at a
// path that no image can guess.
func showProc() error {
	for _, at := range []string{"proc", ".proc-" + rand.Text()} {
		fd, err := unix.OpenTree(unix.AT_FDCWD, "/proc", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
		if err != nil {
			return fmt.Errorf("copy the mount of /proc: %w", err)
		}
		tree := os.NewFile(uintptr(fd), "/proc")
		err = attach(tree, at)
		tree.Close()
		if err != nil {
			return err
		}
	}
	for _, name := range procReadOnly {
		file, err := mounts.Open(filepath.Join("proc", name), "")
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		err = cover(file)
		file.Close()
		if err != nil {
			return err
		}
	}
	return nil
}

// cover mounts a read-only copy of a file at the file itself.
func cover(file *os.File) error {
	tree, err := mounts.Copy(file)
	if err != nil {
		return err
	}
	defer tree.Close()
	if err := mounts.SetReadOnly(tree); err != nil {
		return err
	}
	return mounts.Attach(tree, file)
}

// showResolvConf shows the directory that /etc/resolv.conf leads to, if that is one of
// a program in /run: nspawn copies it for some values of --resolv-conf=.
func showResolvConf() error {
	target, err := filepath.EvalSymlinks("/etc/resolv.conf")
	if err != nil {
		return nil // nothing to copy
	}
	dir := filepath.Dir(target)
	if !strings.HasPrefix(dir, "/run/") || strings.HasPrefix(dir+"/", "/run/systemd/") {
		return nil
	}
	return show(shown{path: dir, optional: true})
}

// seal makes the new root itself read-only: all that is needed is there. The directory
// of mounts is not: nspawn locks the machine's root by a file beside it.
func seal() error {
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}
	return unix.MountSetattr(unix.AT_FDCWD, "/", 0, &attr)
}
