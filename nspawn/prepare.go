package nspawn

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"nomad-driver-nspawn/nspawn/disk"
	"nomad-driver-nspawn/nspawn/idmap"
	"nomad-driver-nspawn/nspawn/machine"
	"nomad-driver-nspawn/nspawn/mounts"
	"nomad-driver-nspawn/nspawn/network"
	"nomad-driver-nspawn/nspawn/quota"
	"nomad-driver-nspawn/nspawn/rootfs"
	"nomad-driver-nspawn/nspawn/tree"
)

// prepare makes what the machine needs on the host and completes the spec. It
// undoes nothing: Remove knows all of it by the machine's name. What will take
// its time is told by notice.
func (m *Manager) prepare(ctx context.Context, s *Spec, notice func(string)) error {
	if err := os.MkdirAll(m.dirs.machine(s.Machine), 0o700); err != nil {
		return fmt.Errorf("make the directory of machine %s: %w", s.Machine, err)
	}
	if err := os.WriteFile(m.dirs.environment(s.Machine), []byte(machine.EnvironmentFile(s.Environment)), 0o600); err != nil {
		return fmt.Errorf("write the environment of machine %s: %w", s.Machine, err)
	}
	if err := m.makeOverlayTargets(*s); err != nil {
		return err
	}
	if s.Root.Writable.Max > 0 && !s.Root.Writable.InMemory {
		if err := m.limit(*s); err != nil {
			return err
		}
	}
	if s.Root.UserNamespace {
		base, err := m.ranges.Acquire(s.Machine)
		if err != nil {
			return err
		}
		s.Root.UIDBase = base
		if err := m.makePoints(*s); err != nil {
			return err
		}
		if err := m.mapBinds(ctx, s); err != nil {
			return err
		}
	}
	if s.Network.Namespace != "" {
		if err := network.Prepare(s.Network.Namespace); err != nil {
			return err
		}
	}
	if err := m.prepareRoot(ctx, s, notice); err != nil {
		return err
	}
	return m.mountOverlays(*s)
}

// prepareRoot mounts a copy-on-write root, or claims an image that is written to
// in place.
func (m *Manager) prepareRoot(ctx context.Context, s *Spec, notice func(string)) error {
	lower, err := m.lower(ctx, s)
	if err != nil {
		return err
	}
	if s.Root.InPlace {
		return m.prepareInPlace(*s)
	}
	overlay := rootfs.Overlay{Lower: lower, Target: m.dirs.root(s.Machine), UIDBase: s.Root.UIDBase}
	if s.Root.Writable.InMemory {
		overlay.Memory = s.Root.Writable.Max
	} else {
		overlay.RW = m.dirs.writable(s.Machine)
	}
	if err := mountOverlay(ctx, overlay, notice); err != nil {
		return err
	}
	if s.Root.Disk != "" {
		if err := mountPartitions(ctx, s.Root.Image, overlay, notice); err != nil {
			return err
		}
	}
	return furnish(m.dirs.root(s.Machine), *s, allBinds(*s, m.dirs))
}

// prepareInPlace is for an image that nspawn ID-maps itself. One that may be
// written to has only one machine.
func (m *Manager) prepareInPlace(s Spec) error {
	if s.Root.UserNamespace {
		if err := idmap.Mappable(s.Root.Image); err != nil {
			return fmt.Errorf("image %s in place with a user namespace: %w; set ephemeral = true to run a private copy", s.Root.Image, err)
		}
	}
	if s.Root.ReadOnly {
		return nil
	}
	return m.claim(s.Root.Image, m.dirs.root(s.Machine))
}

// mountOverlay mounts a part of the machine's copy-on-write root. Where its
// layers cannot be ID-mapped, which an attempt tells, it is the slower one of
// changed owners.
func mountOverlay(ctx context.Context, overlay rootfs.Overlay, notice func(string)) error {
	err := overlay.Mount()
	if errors.Is(err, idmap.ErrUnmappable) {
		notice(fmt.Sprintf("Owners of files are changed in a private copy of the image, which takes time for images of many files: %v", err))
		err = overlay.MountChowned(ctx)
	}
	return err
}

// limit makes the machine's writable layer with its limit. The projects that it
// may be of are numbered as the UIDs of its range, which is no other machine's;
// so it has one also if it has no user namespace.
func (m *Manager) limit(s Spec) error {
	base, err := m.ranges.Acquire(s.Machine)
	if err != nil {
		return err
	}
	if err := quota.Make(m.dirs.writable(s.Machine), s.Root.Writable.Max, base); err != nil {
		return fmt.Errorf("%w; or set in_memory in the disk block", err)
	}
	return nil
}

// lower are the layers that the machine's root lies on. Those of the store are
// referred to from now on, so that they are not collected. A disk is mounted.
func (m *Manager) lower(ctx context.Context, s *Spec) (layers []string, err error) {
	if s.Root.Stored != "" {
		image, err := m.images.Acquire(ctx, s.Machine, s.Root.Stored)
		if err != nil || image.Disk == "" {
			return m.images.Trees(image), err
		}
		s.Root.Disk = m.images.DiskFile(image)
	}
	if s.Root.Disk != "" {
		s.Root.Image, err = m.disks.Attach(ctx, s.Machine, disk.Image{
			Path:     s.Root.Disk,
			Policy:   s.Root.DiskPolicy,
			Writable: s.Root.InPlace && !s.Root.ReadOnly,
		})
	}
	return []string{s.Root.Image}, err
}

// mountPartitions covers the further partitions of a disk, as /usr or /var, which
// are mounted below its root, like the root itself. An EFI partition is not for
// machines, nor can it be a layer (vfat).
func mountPartitions(ctx context.Context, disk string, root rootfs.Overlay, notice func(string)) error {
	partitions, err := mounts.Below(disk)
	if err != nil {
		return err
	}
	for i, partition := range partitions {
		if partition.FSType == "vfat" {
			continue
		}
		overlay := root
		overlay.Lower = []string{filepath.Join(disk, partition.Path)}
		overlay.Target = filepath.Join(root.Target, partition.Path)
		if root.Memory == 0 {
			overlay.RW = filepath.Join(root.RW, fmt.Sprintf("partition%d", i))
		}
		if err := mountOverlay(ctx, overlay, notice); err != nil {
			return err
		}
	}
	return nil
}

// furnish puts the spec's files and the mount points of its binds into the
// root. The image decides what is at their paths, so they are reached without
// ever leaving the root.
func furnish(dir string, s Spec, binds []Bind) error {
	tree, err := os.OpenRoot(dir)
	if err != nil {
		return fmt.Errorf("open the root of the machine: %w", err)
	}
	defer tree.Close()
	owner := int(s.Root.UIDBase)
	// nspawn runs no tree without /usr; an image of one static program has none.
	if err := makeDir(tree, "usr", owner); err != nil {
		return fmt.Errorf("make /usr of the machine: %w", err)
	}
	for _, file := range s.Root.Files {
		if err := writeFile(tree, file, owner); err != nil {
			return fmt.Errorf("write %s of the machine: %w", file.Path, err)
		}
	}
	for _, bind := range binds {
		if err := makeMountPoint(tree, bind, owner); err != nil {
			return fmt.Errorf("make the mount point %s of the machine: %w", bind.Destination, err)
		}
	}
	return nil
}

// makeMountPoint is for a read-only root, in which nspawn can make none, and
// for nspawn 252, which leaves those that it makes to nobody. Where a link of
// the image leads to an absolute path, it is left to nspawn after all.
func makeMountPoint(tree *os.Root, bind Bind, owner int) error {
	name := strings.TrimPrefix(filepath.Clean(bind.Destination), "/")
	if _, err := tree.Stat(name); !errors.Is(err, os.ErrNotExist) {
		return nil
	}
	source, err := os.Stat(bind.Source)
	if err != nil {
		return err
	}
	if source.IsDir() {
		return makeDir(tree, name, owner)
	}
	if err := makeDir(tree, filepath.Dir(name), owner); err != nil {
		return err
	}
	return writeFile(tree, File{Path: bind.Destination}, owner)
}

// makeDir makes a directory and those above it, of the machine's root.
func makeDir(tree *os.Root, name string, owner int) error {
	if _, err := tree.Stat(name); !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := makeDir(tree, filepath.Dir(name), owner); err != nil {
		return err
	}
	if err := tree.Mkdir(name, 0o755); err != nil {
		return err
	}
	return tree.Chown(name, owner, owner)
}

func writeFile(tree *os.Root, file File, owner int) error {
	name := strings.TrimPrefix(filepath.Clean(file.Path), "/")
	if _, err := tree.Lstat(name); file.Keep && err == nil {
		return nil
	}
	if err := makeDir(tree, filepath.Dir(name), owner); err != nil {
		return err
	}
	// Often a symbolic link into a directory that is empty before the boot.
	if err := ignoreNotExist(tree.Remove(name)); err != nil {
		return err
	}
	if err := tree.WriteFile(name, []byte(file.Content), 0o644); err != nil {
		return err
	}
	return tree.Lchown(name, owner, owner)
}

// removeFiles removes what prepare made, and what nspawn leaves.
func (m *Manager) removeFiles(ctx context.Context, machine string) error {
	if err := errors.Join(m.removeOverlays(machine), m.removeBinds(machine)); err != nil {
		return err
	}
	root := m.dirs.root(machine)
	if target, err := os.Readlink(root); err == nil {
		if err := os.Remove(root); err != nil {
			return fmt.Errorf("release image %s: %w", target, err)
		}
	} else if err := errors.Join(removeLock(root), mounts.Unmount(root)); err != nil {
		return err
	}
	if err := errors.Join(
		quota.End(m.dirs.writable(machine)),
		tree.Remove(m.dirs.writable(machine)),
		m.ranges.Release(machine),
		m.disks.Detach(machine),
		m.images.Release(ctx, machine),
		m.dirs.removeJournalLink(machine),
		removeEmpty(machine),
	); err != nil {
		return err
	}
	// Last, as by it the others are found, see Machines.
	return tree.Remove(m.dirs.machine(machine))
}

// removeEmpty removes the directories below /run/systemd/nspawn that an nspawn
// that is killed leaves; they are empty outside of its mount namespace. A unit of
// before an upgrade from systemd 255 has none of its own.
func removeEmpty(machine string) error {
	var errs []error
	_ = unix.Unmount("/run/systemd/nspawn/unix-export/"+machine, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW) // hardly ever mounted
	for _, dir := range []string{"propagate/" + machine, "unix-export/" + machine, machine + "/unix-export", machine} {
		errs = append(errs, ignoreNotExist(os.Remove("/run/systemd/nspawn/"+dir)))
	}
	return errors.Join(errs...)
}

// removeLock removes the lock file of a root that is only this machine's, which
// an nspawn that is killed leaves (image_path_lock in systemd's discover-image.c).
func removeLock(root string) error {
	var stat unix.Stat_t
	if err := unix.Stat(root, &stat); err != nil {
		return nil // nothing was mounted
	}
	return ignoreNotExist(os.Remove(fmt.Sprintf("/run/systemd/nspawn/locks/inode-%d:%d", stat.Dev, stat.Ino)))
}

const journalDir = "/var/log/journal"

// removeJournalLink removes the symbolic link to the machine's journal that
// --link-journal=guest makes below /var/log/journal, named by the machine ID.
// It leads into the machine's root, or into the image that it runs in place; with
// nspawn 262, to where nobody but that nspawn has ever seen it. Tasks of one
// allocation share the ID: a link into another machine's root is not ours.
func (d Dirs) removeJournalLink(machine string) error {
	links, err := filepath.Glob(filepath.Join(journalDir, "*"))
	if err != nil {
		return err
	}
	id := machineIDOf(machine)
	for _, link := range links {
		target, err := os.Readlink(link)
		if err != nil {
			continue
		}
		_, err = os.Stat(link)
		others := strings.HasPrefix(target, d.machines()+"/") && err == nil
		if strings.HasPrefix(target, d.root(machine)+"/") || filepath.Base(link) == id && !others {
			if err := ignoreNotExist(os.Remove(link)); err != nil {
				return fmt.Errorf("remove the link to the machine's journal: %w", err)
			}
		}
	}
	return nil
}

// machineIDOf is the machine ID of a machine that is named by machine.Name: the
// allocation's ID, which ends the name, without its dashes.
func machineIDOf(machine string) string {
	const uuid = 36
	return strings.ReplaceAll(machine[max(len(machine)-uuid, 0):], "-", "")
}
