package stage

import (
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"nomad-driver-nspawn/nspawn/mounts"
)

// shown is a part of the host that the stage shows at the same path.
type shown struct {
	path     string
	writable bool
	optional bool
}

// attachDir is the subdirectory of a machine's own directory in which mounts are
// attached.
const attachDir = "mounts"

// parts are the parts of the host that systemd-nspawn needs: programs and libraries,
// configuration, /sys for control groups, /dev for the devices that it binds, and the
// sockets of systemd, journald and D-Bus.
var parts = []shown{
	{path: "/usr"},
	{path: "/etc"},
	{path: "/sys", writable: true},
	{path: "/dev", writable: true},
	{path: "/run/systemd"},
	{path: "/run/dbus", optional: true},
}

// topLinks are directories, or links to directories in /usr. Those that exist are shown.
var topLinks = []string{"/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32"}

// procReadOnly lists the files of /proc with which a process can change the host.
var procReadOnly = []string{"sys", "irq", "bus", "sysrq-trigger"}

// hostParts holds detached mounts of all parts of the host that a stage shows. They show
// the host as it was when the stage was made.
type hostParts struct {
	proc  []*os.File // two mounts of it, see showProc
	trees []tree
	links map[string]string // link targets by link name, relative to the root
}

// tree is a detached mount and the path at which the stage shows it.
type tree struct {
	*os.File
	path string
}

// openHostParts opens all parts on the host. The caller closes them, even after an error.
func openHostParts() (h hostParts, err error) {
	proc, err := mounts.Open("/proc", "")
	if err != nil {
		return h, err
	}
	defer proc.Close()
	for range 2 {
		tree, err := mounts.CopyOne(proc)
		if err != nil {
			return h, err
		}
		h.proc = append(h.proc, tree)
	}
	list := slices.Clone(parts)
	h.links = map[string]string{}
	for _, path := range topLinks {
		target, err := os.Readlink(path)
		if err == nil {
			h.links[relative(path)] = target
		} else if !errors.Is(err, os.ErrNotExist) { // a directory, as /usr is not merged
			list = append(list, shown{path: path})
		}
	}
	if path := resolvConfDir(); path != "" {
		list = append(list, shown{path: path, optional: true})
	}
	for _, part := range list {
		file, err := copyPart(part)
		if errors.Is(err, os.ErrNotExist) && part.optional {
			continue
		}
		if err != nil {
			return h, err
		}
		h.trees = append(h.trees, tree{file, part.path})
	}
	return h, nil
}

func (h hostParts) close() {
	for _, file := range h.proc {
		file.Close()
	}
	for _, tree := range h.trees {
		tree.Close()
	}
}

// build makes the root of the mount namespace of this thread, and changes to it.
func (h hostParts) build() error {
	if err := unix.Mount("tmpfs", "/"+buildDir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0755,size=1m,nr_inodes=4096"); err != nil {
		return fmt.Errorf("mount tmpfs: %w", err)
	}
	if err := unix.Chdir("/" + buildDir); err != nil {
		return fmt.Errorf("enter tmpfs: %w", err)
	}
	for name, target := range h.links {
		if err := os.Symlink(target, name); err != nil {
			return err
		}
	}
	for _, tree := range h.trees {
		if err := attach(tree.File, relative(tree.path)); err != nil {
			return err
		}
	}
	if err := h.showProc(); err != nil {
		return err
	}
	if err := mountTmpfs("tmp", "mode=1777"); err != nil {
		return err
	}
	if err := mountTmpfs("run/systemd/nspawn", "mode=0755"); err != nil {
		return err
	}
	return enterRoot()
}

// showMachine makes the machine's own directory visible in the mount namespace of this
// thread.
func showMachine(own *os.File, dir string) error {
	if err := attach(own, dir); err != nil {
		return err
	}
	return mountTmpfs(filepath.Join(dir, attachDir), "mode=0755,nr_inodes=65536")
}

func mountTmpfs(path, options string) error {
	if err := os.MkdirAll(path, 0o755); err != nil && !errors.Is(err, unix.EROFS) {
		return err
	}
	if err := unix.Mount("tmpfs", path, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, options); err != nil {
		return fmt.Errorf("mount tmpfs at /%s: %w", relative(path), err)
	}
	return nil
}

func relative(path string) string { return strings.TrimPrefix(path, "/") }

func copyPart(part shown) (*os.File, error) {
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

// attach creates a directory at path and mounts a detached tree there.
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

// showProc mounts the host's /proc, with the files that change the host read-only.
//
// The kernel lets a user namespace mount a /proc of its own only if an unobstructed /proc
// is visible. So a second one is mounted, at a path that no image can guess.
func (h hostParts) showProc() error {
	for i, at := range []string{"proc", ".proc-" + rand.Text()} {
		if err := attach(h.proc[i], at); err != nil {
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

// cover mounts a read-only copy of a file over the file itself.
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

// resolvConfDir returns the directory of the file that /etc/resolv.conf links to, if a
// program keeps it in /run: for some values of --resolv-conf=, nspawn copies that file.
func resolvConfDir() string {
	target, err := filepath.EvalSymlinks("/etc/resolv.conf")
	if err != nil {
		return "" // nothing to copy
	}
	dir := filepath.Dir(target)
	if !strings.HasPrefix(dir, "/run/") || strings.HasPrefix(dir+"/", "/run/systemd/") {
		return ""
	}
	return dir
}

// seal makes the new root read-only, once everything in it exists. The directory of
// mounts remains writable, because nspawn creates a lock file beside the machine's root.
func seal() error {
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}
	return unix.MountSetattr(unix.AT_FDCWD, "/", 0, &attr)
}
