package parts

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"

	"nomad-driver-nspawn/nspawn/dirs"
	"nomad-driver-nspawn/nspawn/idmap"
	"nomad-driver-nspawn/nspawn/machine"
	"nomad-driver-nspawn/nspawn/paths"
)

// makeDevices creates nodes of the host's devices in the stage, which nspawn binds. The
// nodes have owners of the machine. The host's own nodes cannot have them: its /dev cannot
// be ID-mapped, so they would all belong to nobody.
func (m *Maker) makeDevices(_ context.Context, d *draft) error {
	if len(d.spec.Devices) == 0 {
		return nil
	}
	dir := m.dirs.Mounted(d.spec.Machine, devicesMount)
	err := d.stage.Do(func() error {
		if err := os.Mkdir(dir, 0o755); err != nil {
			return err
		}
		return unix.Mount("tmpfs", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NOEXEC, "mode=0755,size=64k,nr_inodes=1024")
	})
	if err != nil {
		return fmt.Errorf("make the file system of the machine's devices: %w", err)
	}
	d.spec.Devices = slices.Clone(d.spec.Devices)
	for i := range d.spec.Devices {
		device := &d.spec.Devices[i]
		if err := m.makeDevice(d, device, filepath.Join(dir, strconv.Itoa(i))); err != nil {
			return fmt.Errorf("show device %s at %s: %w", device.Source, device.Destination, err)
		}
	}
	return nil
}

// devicesMount is the file system that holds the nodes of the machine's devices.
const devicesMount = "devices"

// makeDevice creates the node of one device. It also replaces the device's path in the
// spec by its number, so that the machine gets access to the device that it sees.
func (m *Maker) makeDevice(d *draft, device *machine.Device, node string) error {
	file, err := d.open(device.Source)
	if err != nil {
		return err
	}
	defer file.Close()
	var stat unix.Stat_t
	if err := unix.Fstat(int(file.Fd()), &stat); err != nil {
		return err
	}
	kind := "char"
	switch stat.Mode & unix.S_IFMT {
	case unix.S_IFCHR:
	case unix.S_IFBLK:
		kind = "block"
	default:
		return errors.New("it is not a device; name each device of a directory by itself")
	}
	err = d.stage.Do(func() error {
		if err := m.makeDevicePoint(d, device.Destination); err != nil {
			return fmt.Errorf("make the mount point: %w", err)
		}
		if err := unix.Mknod(node, stat.Mode&unix.S_IFMT, int(stat.Rdev)); err != nil {
			return fmt.Errorf("make a node: %w", err)
		}
		if err := os.Lchown(node, ownerInside(stat.Uid, d), ownerInside(stat.Gid, d)); err != nil {
			return err
		}
		return os.Chmod(node, os.FileMode(stat.Mode&0o777))
	})
	if err != nil {
		return err
	}
	device.Source = fmt.Sprintf("/dev/%s/%d:%d", kind, unix.Major(stat.Rdev), unix.Minor(stat.Rdev))
	return nil
}

// makeDevicePoint creates the mount point of a node. In /dev, which is empty at first,
// nspawn creates the mount points.
func (m *Maker) makeDevicePoint(d *draft, destination string) error {
	if d.spec.Root.InPlace || paths.Within("/dev", destination) {
		return nil
	}
	tree, err := os.OpenRoot(m.dirs.Root(d.spec.Machine))
	if err != nil {
		return err
	}
	defer tree.Close()
	return makeMountPoint(tree, destination, false, int(d.base))
}

// ownerInside returns the ID on the host of an owner that has the given ID in the machine.
// As in docker, the owner has the same ID in the machine as on the host. IDs that the
// machine lacks become root's.
func ownerInside(id uint32, d *draft) int {
	if !d.spec.Root.UserNamespace {
		return int(id)
	}
	if id >= idmap.RangeSize {
		id = 0
	}
	return int(d.base + id)
}

// deviceBinds returns the binds of the nodes.
func deviceBinds(d dirs.Dirs, s machine.Spec) (binds []machine.Bind) {
	for i, device := range s.Devices {
		source := filepath.Join(d.Mounted(s.Machine, devicesMount), strconv.Itoa(i))
		binds = append(binds, machine.Bind{Source: source, Destination: device.Destination})
	}
	return binds
}
