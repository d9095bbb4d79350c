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

// set is what of the host a stage shows, as it was when the stage was made.
type set struct {
	proc  []*os.File // twice
	trees []tree
	links map[string]string // targets by the name of the link, relative to the root
}

// tree is a detached mount and where it is seen.
type tree struct {
	*os.File
	path string
}

// gather opens all of it, on the host. The caller closes it, also after an error.
func gather() (s set, err error) {
	proc, err := mounts.Open("/proc", "")
	if err != nil {
		return s, err
	}
	defer proc.Close()
	for range 2 {
		tree, err := mounts.CopyOne(proc)
		if err != nil {
			return s, err
		}
		s.proc = append(s.proc, tree)
	}
	list := slices.Clone(parts)
	s.links = map[string]string{}
	for _, path := range topLinks {
		target, err := os.Readlink(path)
		if err == nil {
			s.links[relative(path)] = target
		} else if !errors.Is(err, os.ErrNotExist) { // a directory, where /usr is not merged
			list = append(list, shown{path: path})
		}
	}
	if path := resolvConfDir(); path != "" {
		list = append(list, shown{path: path, optional: true})
	}
	for _, part := range list {
		file, err := copyOf(part)
		if errors.Is(err, os.ErrNotExist) && part.optional {
			continue
		}
		if err != nil {
			return s, err
		}
		s.trees = append(s.trees, tree{file, part.path})
	}
	return s, nil
}

func (s set) close() {
	for _, file := range s.proc {
		file.Close()
	}
	for _, tree := range s.trees {
		tree.Close()
	}
}

// build makes the root of the namespace that this thread is in, and goes there.
func (s set) build() error {
	if err := unix.Mount("tmpfs", "/"+buildDir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0755,size=1m,nr_inodes=4096"); err != nil {
		return fmt.Errorf("mount tmpfs: %w", err)
	}
	if err := unix.Chdir("/" + buildDir); err != nil {
		return fmt.Errorf("enter tmpfs: %w", err)
	}
	for name, target := range s.links {
		if err := os.Symlink(target, name); err != nil {
			return err
		}
	}
	for _, tree := range s.trees {
		if err := attach(tree.File, relative(tree.path)); err != nil {
			return err
		}
	}
	if err := s.showProc(); err != nil {
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

// showMachine shows the machine's own directory in the namespace that this thread is in.
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

// attach mounts a directory at a path, which is made.
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

// showProc shows the host's /proc with what changes the host read-only. The kernel lets
// a user namespace mount a /proc of its own only where it sees one whole: that is at a
// path that no image can guess.
func (s set) showProc() error {
	for i, at := range []string{"proc", ".proc-" + rand.Text()} {
		if err := attach(s.proc[i], at); err != nil {
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

// resolvConfDir returns the directory that /etc/resolv.conf leads to, if that is one of
// a program in /run: nspawn copies it for some values of --resolv-conf=.
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

// seal makes the new root itself read-only: all that is needed is there. The directory
// of mounts is not: nspawn locks the machine's root by a file beside it.
func seal() error {
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}
	return unix.MountSetattr(unix.AT_FDCWD, "/", 0, &attr)
}
