package parts

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"nomad-driver-nspawn/nspawn/disk"
)

// makeImage finds the layers below the machine's root. It refers to an image of the store,
// so that the store keeps it, and mounts a disk.
func (m *Maker) makeImage(ctx context.Context, d *draft) (err error) {
	root := d.spec.Root
	d.image, d.disk = root.Image, root.Disk
	if root.StoreDigest != "" {
		image, err := m.images.Acquire(ctx, d.spec.Machine, root.StoreDigest)
		if err != nil || image.Disk == "" {
			d.lower = m.images.Trees(image)
			return err
		}
		d.disk = m.images.DiskFile(image)
	}
	if d.disk != "" {
		d.image, err = m.attachDisk(ctx, d)
	}
	d.lower = []string{d.image}
	return err
}

// attachDisk mounts the disk. If others can replace the disk's file, it passes an open
// file.
func (m *Maker) attachDisk(ctx context.Context, d *draft) (dir string, err error) {
	root := d.spec.Root
	image := disk.Image{Path: d.disk, Policy: root.DiskPolicy, Writable: root.InPlace && !root.ReadOnly}
	if d.isUntrusted(d.disk) {
		file, err := d.open(d.disk)
		if err != nil {
			return "", err
		}
		defer file.Close()
		image.Path = fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), file.Fd())
	}
	return m.disks.Attach(ctx, d.spec.Machine, image)
}

func (m *Maker) removeImage(ctx context.Context, name string) error {
	return errors.Join(m.disks.Detach(name), m.images.Release(ctx, name))
}

func (m *Maker) imageOwners() ([]string, error) {
	return namesOf(filepath.Join(m.dirs.Images(), "refs", "*"))
}
