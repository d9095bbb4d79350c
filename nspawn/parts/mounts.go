package parts

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"nomad-driver-nspawn/nspawn/guard"
	"nomad-driver-nspawn/nspawn/idmap"
	"nomad-driver-nspawn/nspawn/machine"
	"nomad-driver-nspawn/nspawn/mounts"
	"nomad-driver-nspawn/nspawn/rootfs"
)

// makeMounts mounts in the stage what the machine shows: binds and overlays. It runs when
// nothing writes to the root any more, because directories of the root may be layers,
// which must not change.
func (m *Maker) makeMounts(ctx context.Context, d *draft) error {
	list := shownBy(d.spec)
	if err := m.makeMountPoints(d, list); err != nil {
		return err
	}
	trees := make([]*os.File, len(list))
	for i, s := range list {
		tree, err := m.openShown(ctx, d, s)
		if err != nil {
			return err
		}
		defer tree.Close()
		trees[i] = tree
	}
	return d.stage.Do(func() error {
		for i, s := range list {
			var err error
			if s.inside < 0 {
				err = place(trees[i], m.dirs.Mounted(d.spec.Machine, s.name))
			} else {
				err = placeInside(trees[s.inside], list[s.inside], s, trees[i], int(d.base))
			}
			if err != nil {
				return fmt.Errorf("mount %s of the machine: %w", s.destination, err)
			}
		}
		return nil
	})
}

// makeMountPoints creates the mount points in a root that only this machine uses.
func (m *Maker) makeMountPoints(d *draft, list []shown) error {
	if d.spec.Root.InPlace {
		return nil
	}
	isDir := func(s shown) (bool, error) {
		if s.bind == nil || s.bind.InRoot {
			return true, nil
		}
		file, err := d.open(s.bind.Source)
		if err != nil {
			return false, err
		}
		defer file.Close()
		info, err := file.Stat()
		return err == nil && info.IsDir(), err
	}
	for _, s := range list {
		if s.inside >= 0 {
			continue
		}
		dir, err := isDir(s)
		if err != nil {
			return fmt.Errorf("bind to %s: %w", s.destination, err)
		}
		err = d.stage.Do(func() error {
			tree, err := os.OpenRoot(m.dirs.Root(d.spec.Machine))
			if err != nil {
				return err
			}
			defer tree.Close()
			return makeMountPoint(tree, s.destination, dir, int(d.base))
		})
		if err != nil {
			return fmt.Errorf("make the mount point %s of the machine: %w", s.destination, err)
		}
	}
	return nil
}

// openShown returns what the machine shows as a detached mount with the machine's owners.
func (m *Maker) openShown(ctx context.Context, d *draft, s shown) (tree *os.File, err error) {
	if s.overlay != nil {
		tree, err = m.openOverlay(d, *s.overlay, filepath.Base(s.name))
		if err != nil {
			return nil, fmt.Errorf("overlay %s: %w", s.destination, err)
		}
		return tree, nil
	}
	if s.memory != nil {
		tree, err = d.openMemory(*s.memory)
		if err != nil {
			return nil, fmt.Errorf("tmpfs %s: %w", s.destination, err)
		}
		return tree, nil
	}
	if s.bind.InRoot {
		tree, err = d.openInRoot(m.dirs.Root(d.spec.Machine), s.bind.Source)
	} else {
		tree, err = d.openBind(ctx, *s.bind)
	}
	if err == nil && s.readOnly {
		if err = mounts.SetReadOnly(tree); err != nil {
			tree.Close()
		}
	}
	if err != nil {
		return nil, fmt.Errorf("bind %s to %s: %w", s.bind.Source, s.destination, err)
	}
	return tree, nil
}

func (d *draft) openMemory(memory machine.Memory) (*os.File, error) {
	options := maps.Clone(memory.Options)
	options["uid"] = strconv.FormatUint(uint64(d.base+memory.UID), 10)
	options["gid"] = strconv.FormatUint(uint64(d.base+memory.GID), 10)
	return mounts.Tmpfs(options, unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV)
}

func (d *draft) openBind(ctx context.Context, bind machine.Bind) (*os.File, error) {
	file, err := d.open(bind.Source)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	if err := guard.Protect(file, bind.Keep); err != nil {
		return nil, err
	}
	tree, err := d.copyOf(file, mounts.Copy)
	if err != nil || d.users == nil {
		return tree, err
	}
	err = d.mapOwners(tree, bind)
	if errors.Is(err, idmap.ErrUnmappable) && bind.ChownFallback {
		err = rootfs.HandOver(ctx, file, d.base)
	}
	if err != nil {
		tree.Close()
		return nil, fmt.Errorf("map owners for a user namespace: %w", nameUnmappable(bind.Source, err))
	}
	return tree, nil
}

// mapOwners maps the owners in the mount of a bind to the machine's user namespace.
func (d *draft) mapOwners(tree *os.File, bind machine.Bind) error {
	users := d.users
	if bind.Keep == machine.KeepEntries || bind.Keep == machine.KeepAll {
		apart, err := idmap.NamespaceApart(d.base)
		if err != nil {
			return err
		}
		defer apart.Close()
		users = apart
	}
	return idmap.Map(int(tree.Fd()), bind.Source, users)
}

// nameUnmappable adds to an error which mount below the path cannot be ID-mapped, if it is
// one of these.
func nameUnmappable(path string, err error) error {
	below, _ := mounts.Below(path)
	for _, mount := range below {
		point := filepath.Join(path, mount.Path)
		if why := idmap.Mappable(point); why != nil {
			return fmt.Errorf("%s, mounted at %s: %w", mount.FSType, point, why)
		}
	}
	return err
}

// placeInside mounts a tree inside another one, which is already mounted.
func placeInside(top *os.File, outer, s shown, tree *os.File, owner int) error {
	name := strings.TrimPrefix(s.destination, strings.TrimSuffix(outer.destination, "/")+"/")
	info, err := tree.Stat()
	if err != nil {
		return err
	}
	at, err := makePointBeneath(top, name, info.IsDir(), owner)
	if err != nil {
		return err
	}
	defer at.Close()
	point, err := at.Stat()
	if err != nil {
		return err
	}
	// A mount that covers itself, as the log directory in the shared one does, must really
	// cover itself.
	self := s.bind != nil && outer.bind != nil && s.bind.Source == filepath.Join(outer.bind.Source, name)
	if self && !os.SameFile(point, info) {
		return fmt.Errorf("%s has been replaced by something else", s.bind.Source)
	}
	return mounts.Attach(tree, at)
}

// makePointBeneath opens a mount point, and creates it for the machine's root if it is
// missing. It follows no links, because others may change the directory at the same time.
func makePointBeneath(top *os.File, name string, isDir bool, owner int) (*os.File, error) {
	dir, err := mounts.OpenBeneath(top, ".", unix.O_DIRECTORY)
	if err != nil {
		return nil, err
	}
	parts := strings.Split(filepath.Clean(name), "/")
	for i, part := range parts {
		at := int(dir.Fd())
		var made error
		if isDir || i < len(parts)-1 {
			made = unix.Mkdirat(at, part, 0o755)
		} else {
			made = unix.Mknodat(at, part, unix.S_IFREG|0o644, 0)
		}
		if made == nil {
			made = unix.Fchownat(at, part, owner, owner, unix.AT_SYMLINK_NOFOLLOW)
		}
		next, err := mounts.OpenBeneath(dir, part, 0)
		dir.Close()
		if err != nil {
			if made != nil && errors.Is(err, unix.ENOENT) {
				err = fmt.Errorf("make %s: %w", part, made)
			}
			return nil, err
		}
		dir = next
	}
	return dir, nil
}
