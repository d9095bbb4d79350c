package rootfs

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Limiter is what a file system has to limit how much is written below a
// directory.
type Limiter string

// The limiters there are.
const (
	ProjectQuota Limiter = "project-quota" // of ext4 and xfs
	Qgroup       Limiter = "btrfs"         // quota groups of subvolumes
)

// LookLimiter finds out which limiter the file system of dir has, which is made if
// missing. The error says what it lacks.
func LookLimiter(dir string) (Limiter, error) {
	file, err := openOrMake(dir)
	if err != nil {
		return "", fmt.Errorf("look for quotas: %w", err)
	}
	defer file.Close()
	return lookLimiter(file)
}

func openOrMake(dir string) (*os.File, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	return os.Open(dir)
}

func lookLimiter(dir *os.File) (Limiter, error) {
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
		return ProjectQuota, nil
	}
	return "", fmt.Errorf("the file system below %s, %s, does not limit directories: %s", dir.Name(), fsType(dir.Name()), remedy)
}

// MakeLimited makes directory dir, below which no more than size bytes can be
// written, however many UIDs they are of. It must not exist. The first
// RangeSize IDs of projects from that on are for this directory to choose from.
func MakeLimited(dir string, size uint64, projects uint32) error {
	parent, err := openOrMake(filepath.Dir(dir))
	if err != nil {
		return fmt.Errorf("limit %s: %w", dir, err)
	}
	defer parent.Close()
	limiter, err := lookLimiter(parent)
	if err != nil {
		return err
	}
	if limiter == Qgroup {
		err = makeSubvolume(parent, filepath.Base(dir), size)
	} else {
		err = makeProject(dir, size, projects)
	}
	if err != nil {
		return fmt.Errorf("limit %s by %s: %w", dir, limiter, err)
	}
	return nil
}

// Unlimit ends the limit of dir, after which Remove leaves nothing of it. It is
// no error if dir has none or does not exist.
func Unlimit(dir string) error {
	file, err := openDir(unix.AT_FDCWD, filepath.Clean(dir))
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

// sizePerInode bounds the number of files, too: there are no more than blocks of
// the smallest usual size. Empty ones are no way to fill a file system.
const sizePerInode = 4096
