// Package disk mounts disk images: once, and for all machines that run from the
// same one. systemd-dissect(1) does it, which knows partition tables, dm-verity
// and image policies.
//
// What is mounted, and for whom, is in the file system, so that any process can
// take over from one that was killed:
//
//	NAME/tree            where the image is mounted; NAME follows from the file
//	NAME/users/MACHINE   that a machine uses it
//
// It is changed only with a flock(2) on the directory of all. What has no user
// is nobody's, and is unmounted by whoever sees it next.
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

// Mounts are the disk images that are mounted on this host.
type Mounts struct {
	Dir string // absolute and below /run: what is in it ends with the boot
}

// Image is a disk image and how it is to be mounted.
type Image struct {
	// Path is of a regular file, a raw disk, or of a block device. It holds a
	// file system, or a partition table as the Discoverable Partitions
	// Specification wants it.
	Path string
	// Policy is as of systemd.image-policy(7), which systemd-dissect takes since
	// version 254. Without, it has its own.
	Policy string
	// Writable is for a machine that is to be the image's only user.
	Writable bool
}

// Attach returns the directory where the image is mounted, and records that the
// machine uses it, until Detach. The error is a *BusyError if the image cannot
// be shared.
func (m Mounts) Attach(ctx context.Context, machine string, image Image) (dir string, err error) {
	err = m.locked(func() error {
		place, err := m.place(image)
		if err != nil {
			return err
		}
		if err := m.refuseBusy(place, image); err != nil {
			return err
		}
		dir = place.tree()
		return place.mount(ctx, machine, image)
	})
	if err != nil {
		return "", fmt.Errorf("mount disk image %s: %w", image.Path, err)
	}
	return dir, nil
}

// Detach ends the machine's use of its image, and unmounts what nobody uses. It
// is no error if the machine uses none.
func (m Mounts) Detach(machine string) error {
	if _, err := os.Lstat(m.Dir); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return m.locked(func() error {
		places, err := m.places()
		if err != nil {
			return err
		}
		var errs []error
		for _, place := range places {
			if err := os.Remove(place.user(machine)); err != nil && !errors.Is(err, fs.ErrNotExist) {
				errs = append(errs, fmt.Errorf("detach machine %s from its disk image: %w", machine, err))
				continue
			}
			errs = append(errs, place.unmountUnused())
		}
		return errors.Join(errs...)
	})
}

// BusyError says that an image is mounted for another machine, and that one of
// the two writes to it.
type BusyError struct{ Holder string }

func (e *BusyError) Error() string {
	return fmt.Sprintf("it is used by machine %s: stop that task first; only tasks that do not write to an image can share it", e.Holder)
}

// refuseBusy: two mounts of one file system, of which one is written to, destroy
// it or show garbage.
func (m Mounts) refuseBusy(wanted place, image Image) error {
	places, err := m.places()
	if err != nil {
		return err
	}
	for _, place := range places {
		if place.file() != wanted.file() || !place.writable() && !image.Writable {
			continue
		}
		users, err := place.users()
		if err != nil {
			return err
		}
		if len(users) > 0 {
			return &BusyError{Holder: users[0]}
		}
		if err := place.unmountUnused(); err != nil {
			return err
		}
	}
	return nil
}

// locked does work while nobody else changes what is mounted. A mount takes some
// 0.1 s.
func (m Mounts) locked(work func() error) error {
	return filelock.While(m.Dir, 0o700, work)
}

func (m Mounts) places() (places []place, err error) {
	entries, err := os.ReadDir(m.Dir)
	for _, entry := range entries {
		places = append(places, place(filepath.Join(m.Dir, entry.Name())))
	}
	return places, err
}

// place is the directory of a mounted image.
type place string

const readWrite = ".rw"

// place names the file itself, as a path may lead to another later, and what it
// holds. A device is the same as long as it has its number.
func (m Mounts) place(image Image) (place, error) {
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
	return place(filepath.Join(m.Dir, name)), nil
}

func (p place) tree() string { return filepath.Join(string(p), "tree") }

func (p place) usersDir() string { return filepath.Join(string(p), "users") }

func (p place) user(machine string) string { return filepath.Join(p.usersDir(), machine) }

// file is the part of the name that tells one file from another.
func (p place) file() string {
	file, _, _ := strings.Cut(filepath.Base(string(p)), ".")
	return file
}

func (p place) writable() bool { return strings.HasSuffix(string(p), readWrite) }

func (p place) users() (machines []string, err error) {
	entries, err := os.ReadDir(p.usersDir())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	for _, entry := range entries {
		machines = append(machines, entry.Name())
	}
	return machines, err
}

// mount makes the machine a user of the image, which is mounted if it is not
// yet. Who dies in between leaves a mount without a user.
func (p place) mount(ctx context.Context, machine string, image Image) (err error) {
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

// unmountUnused removes what nobody uses.
func (p place) unmountUnused() error {
	users, err := p.users()
	if err != nil || len(users) > 0 {
		return err
	}
	// With all that is mounted in it, as partitions are.
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
