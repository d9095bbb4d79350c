// Package quota limits how much can be written below a directory.
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

// Kind is the mechanism by which a file system limits the size of a directory.
type Kind string

// The kinds that are supported.
const (
	Projects Kind = "project-quota" // project quotas of ext4 and xfs
	Qgroup   Kind = "btrfs"         // quota groups of btrfs subvolumes
)

// Detect returns how the file system that holds dir can limit directories. It creates dir
// if it is missing. The error says what the file system lacks.
func Detect(dir string) (Kind, error) {
	file, err := openOrMake(dir)
	if err != nil {
		return "", fmt.Errorf("detect quotas: %w", err)
	}
	defer file.Close()
	return detect(file)
}

func openOrMake(dir string) (*os.File, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	return os.Open(dir)
}

func detect(dir *os.File) (Kind, error) {
	var stat unix.Statfs_t
	if err := unix.Fstatfs(int(dir.Fd()), &stat); err != nil {
		return "", fmt.Errorf("inspect the file system of %s: %w", dir.Name(), err)
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

// Make creates the directory dir and limits what can be written below it to size bytes,
// no matter how many UIDs the files belong to. dir must not exist. A project quota uses
// one of the 65536 project IDs from first on.
func Make(dir string, size uint64, first uint32) error {
	parent, err := openOrMake(filepath.Dir(dir))
	if err != nil {
		return fmt.Errorf("limit %s: %w", dir, err)
	}
	defer parent.Close()
	kind, err := detect(parent)
	if err != nil {
		return err
	}
	if kind == Qgroup {
		err = makeSubvolume(parent, filepath.Base(dir), size)
	} else {
		err = makeProject(dir, size, first)
	}
	if err != nil {
		return fmt.Errorf("limit %s by %s: %w", dir, kind, err)
	}
	return nil
}

// End removes the limit of dir, after which tree.Remove can remove all of it. It is not
// an error if dir has no limit or does not exist.
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

// Inodes limits the number of files to one per 4096 bytes, the smallest usual block size.
// Otherwise empty files could exhaust the inodes.
func Inodes(size uint64) uint64 { return max(size/4096, 1) }

// projectsEach is the number of project IDs that a directory may choose from.
const projectsEach = 65536
