package host

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Bind shows a file or directory of the machine in a host.
type Bind struct {
	Source   string // absolute path on the machine
	Target   string // absolute path in the host, created when missing
	ReadOnly bool
}

// ParseBind reads SRC:DST or SRC:DST:ro. SRC may be relative.
func ParseBind(s string) (Bind, error) {
	parts := strings.Split(s, ":")
	readOnly := len(parts) == 3 && parts[2] == "ro"
	if len(parts) != 2 && !readOnly {
		return Bind{}, fmt.Errorf("bind %q: want SRC:DST or SRC:DST:ro", s)
	}
	source, err := filepath.Abs(parts[0])
	if err != nil {
		return Bind{}, err
	}
	return Bind{Source: source, Target: parts[1], ReadOnly: readOnly}, nil
}

// ownDirs are real directories in a host, not part of its overlay, because
// overlayfs refuses an upper layer on overlayfs. With /var/log/journal there,
// the journal is kept on disk.
var ownDirs = []struct {
	target string
	mode   os.FileMode
}{
	{"/tmp", 0o777 | os.ModeSticky},
	{"/var/lib/machines", 0o700},
	{"/var/lib/nomad", 0o755},
	{"/var/lib/nomad-driver-nspawn", 0o700},
	{"/var/log/journal", 0o755},
	{"/var/tmp", 0o777 | os.ModeSticky},
}

// makeDirs creates the host's directories on disk and returns the binds for
// ownDirs.
func makeDirs(dir string) ([]Bind, error) {
	for _, sub := range []string{"upper", "work", "root", "own"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o755); err != nil {
			return nil, fmt.Errorf("create host directory: %w", err)
		}
	}
	var binds []Bind
	for _, d := range ownDirs {
		source := filepath.Join(dir, "own", strings.ReplaceAll(d.target[1:], "/", "-"))
		if err := os.Mkdir(source, 0o700); err != nil {
			return nil, fmt.Errorf("create host directory: %w", err)
		}
		if err := os.Chmod(source, d.mode); err != nil {
			return nil, fmt.Errorf("create host directory: %w", err)
		}
		binds = append(binds, Bind{Source: source, Target: d.target})
	}
	// The overlay's root shows the upper layer's mode; the directory above
	// keeps the machine's users away from setuid files in it.
	return binds, os.Chmod(dir, 0o700)
}

// openBinds opens the sources while the machine's tree is still visible. The detached
// mounts can then be attached by path in the host's own root, whatever symbolic links it
// has.
func openBinds(binds []Bind) ([]int, error) {
	var trees []int
	for _, b := range binds {
		fd, err := unix.OpenTree(unix.AT_FDCWD, b.Source, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)
		if err != nil {
			return nil, fmt.Errorf("open bind source %s: %w", b.Source, err)
		}
		if b.ReadOnly {
			attr := &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}
			if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, attr); err != nil {
				return nil, fmt.Errorf("make bind of %s read-only: %w", b.Source, err)
			}
		}
		trees = append(trees, fd)
	}
	return trees, nil
}

func attachBinds(binds []Bind, trees []int) error {
	for i, b := range binds {
		if err := makeTarget(b.Target, trees[i]); err != nil {
			return fmt.Errorf("create bind target: %w", err)
		}
		err := unix.MoveMount(trees[i], "", unix.AT_FDCWD, b.Target, unix.MOVE_MOUNT_F_EMPTY_PATH)
		if err != nil {
			return fmt.Errorf("bind %s on %s: %w", b.Source, b.Target, err)
		}
		unix.Close(trees[i])
	}
	return nil
}

// makeTarget creates the mount point: a directory, or a file if the source is a file.
func makeTarget(target string, tree int) error {
	var st unix.Stat_t
	if err := unix.Fstat(tree, &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		return os.MkdirAll(target, 0o755)
	}
	if err := os.MkdirAll(filepath.Dir(target), 0o755); err != nil {
		return err
	}
	f, err := os.OpenFile(target, os.O_CREATE, 0o644)
	if err != nil {
		return err
	}
	return f.Close()
}
