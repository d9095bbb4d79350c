// Package quota limits how much is written below a directory.
package quota

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"nomad-driver-nspawn/nspawn/mounts"
	"nomad-driver-nspawn/nspawn/tree"
)

// Limiter is what a file system has to limit how much is written below a
// directory.
type Limiter string

// The limiters there are.
const (
	Projects Limiter = "project-quota" // of ext4 and xfs
	Qgroup   Limiter = "btrfs"         // quota groups of subvolumes
)

// Look finds out which limiter the file system of dir has, which is made if
// missing. The error says what it lacks.
func Look(dir string) (Limiter, error) {
	file, err := openOrMake(dir)
	if err != nil {
		return "", fmt.Errorf("look for quotas: %w", err)
	}
	defer file.Close()
	return look(file)
}

func openOrMake(dir string) (*os.File, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	return os.Open(dir)
}

func look(dir *os.File) (Limiter, error) {
	var stat unix.Statfs_t
	if err := unix.Fstatfs(int(dir.Fd()), &stat); err != nil {
		return "", fmt.Errorf("look at file system of %s: %w", dir.Name(), err)
	}
	var remedy string
	switch stat.Type {
	case unix.BTRFS_SUPER_MAGIC:
		if qgroupsEnabled(dir) {
			return Qgroup, nil
		}
		remedy = "enable its quotas (btrfs quota enable)"
	case unix.EXT4_SUPER_MAGIC:
		remedy = "enable its project quotas (tune2fs -O quota,project while it is not mounted) and mount it with prjquota"
	case unix.XFS_SUPER_MAGIC:
		remedy = "mount it with prjquota"
	default:
		remedy = "mount ext4 or xfs with prjquota, or btrfs with quotas there"
	}
	if projectsEnforced(dir) {
		return Projects, nil
	}
	return "", fmt.Errorf("the file system below %s, %s, does not limit directories: %s", dir.Name(), mounts.FSType(dir.Name()), remedy)
}

// Make makes directory dir, below which no more than size bytes can be
// written, however many UIDs they are of. It must not exist. The
// 65536 IDs of projects from first on are for this directory to choose from.
func Make(dir string, size uint64, first uint32) error {
	parent, err := openOrMake(filepath.Dir(dir))
	if err != nil {
		return fmt.Errorf("limit %s: %w", dir, err)
	}
	defer parent.Close()
	limiter, err := look(parent)
	if err != nil {
		return err
	}
	if limiter == Qgroup {
		err = makeSubvolume(parent, filepath.Base(dir), size)
	} else {
		err = makeProject(dir, size, first)
	}
	if err != nil {
		return fmt.Errorf("limit %s by %s: %w", dir, limiter, err)
	}
	return nil
}

// End ends the limit of dir, after which tree.Remove leaves nothing of it. It is not
// an error if dir has none or does not exist.
func End(dir string) error {
	file, err := tree.OpenDir(unix.AT_FDCWD, filepath.Clean(dir))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("end the limit of %s: %w", dir, err)
	}
	defer file.Close()
	if err := errors.Join(dropQgroup(file), dropProject(file)); err != nil {
		return fmt.Errorf("end the limit of %s: %w", dir, err)
	}
	return nil
}

// Inodes returns how many files there may be in so many bytes: no more than blocks of
// the smallest usual size. Empty files are no way to fill a file system.
func Inodes(size uint64) uint64 { return max(size/4096, 1) }

// projectsEach is how many IDs of projects a directory may choose from.
const projectsEach = 65536
