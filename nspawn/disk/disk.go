// Package disk mounts disk images. An image is mounted once for all machines that run
// from it. The work is done by systemd-dissect(1), which knows partition tables,
// dm-verity and image policies.
//
// The state is kept in the file system, so any process can continue after one that was
// killed:
//
//	NAME/tree            where the image is mounted; NAME is derived from the file
//	NAME/users/MACHINE   exists while the machine uses the image
//
// It is changed only under a flock(2) on the parent of all NAMEs. An image without users
// is unmounted by the next process that finds it.
package disk

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"nomad-driver-nspawn/nspawn/filelock"
	"nomad-driver-nspawn/nspawn/mounts"
)

// Mounts manages the disk images that are mounted on this host.
type Mounts struct {
	Dir string // absolute and below /run, so that its contents end with the boot
}

// Image is a disk image and how to mount it.
type Image struct {
	// Path is the path of a regular file, which is a raw disk, or of a block device. It
	// contains a file system, or a partition table according to the Discoverable
	// Partitions Specification.
	Path string
	// Policy is an image policy, see systemd.image-policy(7). systemd-dissect supports
	// them since version 254. If Policy is empty, it uses its default.
	Policy string
	// Writable mounts the image writable, for a machine that is its only user.
	Writable bool
}

// Attach mounts the image if necessary and returns the mount point. It records that the
// machine uses the image, until Detach. The error is a *BusyError if the image cannot be
// shared.
func (m Mounts) Attach(ctx context.Context, machine string, image Image) (dir string, err error) {
	err = m.locked(func() error {
		point, err := m.point(image)
		if err != nil {
			return err
		}
		if err := m.refuseBusy(point, image); err != nil {
			return err
		}
		dir = point.tree()
		return point.mount(ctx, machine, image)
	})
	if err != nil {
		return "", fmt.Errorf("mount disk image %s: %w", image.Path, err)
	}
	return dir, nil
}

// Detach ends the machine's use of its image, and unmounts images without users. It is
// not an error if the machine uses none.
func (m Mounts) Detach(machine string) error {
	if _, err := os.Lstat(m.Dir); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return m.locked(func() error {
		points, err := m.points()
		if err != nil {
			return err
		}
		var errs []error
		for _, point := range points {
			if err := os.Remove(point.user(machine)); err != nil && !errors.Is(err, fs.ErrNotExist) {
				errs = append(errs, fmt.Errorf("detach machine %s from its disk image: %w", machine, err))
				continue
			}
			errs = append(errs, point.unmountUnused())
		}
		return errors.Join(errs...)
	})
}

// BusyError reports that an image is mounted for another machine, and that one of the two
// machines writes to it.
type BusyError struct{ Holder string }

func (e *BusyError) Error() string {
	return fmt.Sprintf("it is used by machine %s: stop that task first; only tasks that do not write to an image can share it", e.Holder)
}

// refuseBusy returns a BusyError if the image cannot be shared. Two mounts of one file
// system, one of them writable, would corrupt it or show garbage.
func (m Mounts) refuseBusy(wanted mountPoint, image Image) error {
	points, err := m.points()
	if err != nil {
		return err
	}
	for _, point := range points {
		if point.file() != wanted.file() || !point.writable() && !image.Writable {
			continue
		}
		users, err := point.users()
		if err != nil {
			return err
		}
		if len(users) > 0 {
			return &BusyError{Holder: users[0]}
		}
		if err := point.unmountUnused(); err != nil {
			return err
		}
	}
	return nil
}

// locked calls work under the lock. A mount takes about 0.1 s.
func (m Mounts) locked(work func() error) error {
	return filelock.While(m.Dir, 0o700, work)
}

func (m Mounts) points() (points []mountPoint, err error) {
	entries, err := os.ReadDir(m.Dir)
	for _, entry := range entries {
		points = append(points, mountPoint(filepath.Join(m.Dir, entry.Name())))
	}
	return points, err
}

// mountPoint is the directory of a mounted image.
type mountPoint string

const readWrite = ".rw"

// point returns the directory for an image. Its name is derived from the file itself and
// its state, because the path may lead to another file later. A device is identified by
// its device number.
func (m Mounts) point(image Image) (mountPoint, error) {
	var stat unix.Stat_t
	if err := unix.Stat(image.Path, &stat); err != nil {
		return "", err
	}
	var file, state string
	switch stat.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		file = fmt.Sprintf("%x-%x", stat.Dev, stat.Ino)
		state = fmt.Sprint(stat.Size, stat.Mtim)
	case unix.S_IFBLK:
		file = fmt.Sprintf("device-%x", stat.Rdev)
	default:
		return "", errors.New("it is neither a regular file nor a block device")
	}
	name := file + "." + digest(state, image.Policy)
	if image.Writable {
		name = file + readWrite
	}
	return mountPoint(filepath.Join(m.Dir, name)), nil
}

func (p mountPoint) tree() string { return filepath.Join(string(p), "tree") }

func (p mountPoint) usersDir() string { return filepath.Join(string(p), "users") }

func (p mountPoint) user(machine string) string { return filepath.Join(p.usersDir(), machine) }

// file returns the part of the name that identifies the file.
func (p mountPoint) file() string {
	file, _, _ := strings.Cut(filepath.Base(string(p)), ".")
	return file
}

func (p mountPoint) writable() bool { return strings.HasSuffix(string(p), readWrite) }

func (p mountPoint) users() (machines []string, err error) {
	entries, err := os.ReadDir(p.usersDir())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	for _, entry := range entries {
		machines = append(machines, entry.Name())
	}
	return machines, err
}

// mount makes the machine a user of the image, and mounts the image if necessary. A
// process that dies in between leaves a mount without users.
func (p mountPoint) mount(ctx context.Context, machine string, image Image) (err error) {
	if err := os.MkdirAll(p.tree(), 0o700); err != nil {
		return err
	}
	mounted, err := mounts.IsPoint(p.tree())
	if err == nil && !mounted {
		err = p.dissect(ctx, image)
	}
	if err == nil {
		err = os.MkdirAll(p.usersDir(), 0o700)
	}
	if err == nil {
		err = os.WriteFile(p.user(machine), nil, 0o600)
	}
	if err != nil {
		return errors.Join(err, p.unmountUnused())
	}
	return nil
}

// unmountUnused unmounts the image and removes its directory if it has no users.
func (p mountPoint) unmountUnused() error {
	users, err := p.users()
	if err != nil || len(users) > 0 {
		return err
	}
	// This includes the mounts inside it, such as other partitions.
	err = unix.Unmount(p.tree(), unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("unmount disk image from %s: %w", p.tree(), err)
	}
	for _, dir := range []string{p.tree(), p.usersDir(), string(p)} {
		if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove the mount point of a disk image: %w", err)
		}
	}
	return nil
}
