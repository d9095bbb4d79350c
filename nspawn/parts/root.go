package parts

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"nomad-driver-nspawn/nspawn/idmap"
	"nomad-driver-nspawn/nspawn/machine"
	"nomad-driver-nspawn/nspawn/mounts"
	"nomad-driver-nspawn/nspawn/places"
	"nomad-driver-nspawn/nspawn/rootfs"
)

// makeRoot mounts a copy-on-write root, or an image that is run in place.
func (m *Maker) makeRoot(ctx context.Context, d *draft) error {
	if d.spec.Root.InPlace {
		return m.makeRootInPlace(d)
	}
	overlay := rootfs.Overlay{
		Lower:   d.lower,
		Target:  m.dirs.Mounted(d.spec.Machine, layersMount),
		Within:  d.stage.Do,
		UIDBase: d.base,
		Open:    d.openLayer,
	}
	if d.spec.Root.WritableLayer.InMemory {
		overlay.Memory = d.spec.Root.WritableLayer.Max
	} else {
		overlay.RW = m.dirs.WritableLayer(d.spec.Machine)
	}
	tree, err := d.assemble(ctx, overlay)
	if err != nil {
		return err
	}
	defer tree.Close()
	root := m.dirs.Root(d.spec.Machine)
	if err := d.stage.Do(func() error { return place(tree, root) }); err != nil {
		return err
	}
	if d.disk != "" {
		if err := m.makePartitions(ctx, d, overlay); err != nil {
			return err
		}
	}
	return d.stage.Do(func() error { return secureAndPopulate(root, d.spec, int(d.base)) })
}

// layersMount is where the layers of overlays are mounted while the overlays are made.
const layersMount = "layers"

// secureAndPopulate first creates the directories that the image replaces by something
// else: nothing may be written behind a link that will disappear. What the image has
// behind such a link is mounted in its place.
func secureAndPopulate(dir string, s machine.Spec, owner int) error {
	root, err := mounts.Open(dir, "")
	if err != nil {
		return err
	}
	defer root.Close()
	links, err := openLinked(root)
	defer func() {
		for _, l := range links {
			l.dir.Close()
		}
	}()
	if err != nil {
		return err
	}
	if err := places.Secure(root, true, owner); err != nil {
		return err
	}
	if err := showLinked(root, links); err != nil {
		return err
	}
	return populateRoot(dir, s, owner)
}

// makeRootInPlace mounts an image that nspawn ID-maps itself. A writable image can have
// only one machine.
func (m *Maker) makeRootInPlace(d *draft) error {
	file, err := d.open(d.image)
	if err != nil {
		return err
	}
	defer file.Close()
	if d.spec.Root.UserNamespace {
		if err := idmap.Mappable(fmt.Sprintf("/proc/self/fd/%d", file.Fd())); err != nil {
			return fmt.Errorf("image %s in place with a user namespace: %w; set ephemeral = true to run a private copy", d.image, err)
		}
	}
	if !d.spec.Root.ReadOnly {
		if err := m.claim(d.image, m.dirs.Claim(d.spec.Machine)); err != nil {
			return err
		}
	}
	tree, err := d.copyOf(file, mounts.Copy)
	if err != nil {
		return err
	}
	defer tree.Close()
	return d.stage.Do(func() error { return place(tree, m.dirs.Root(d.spec.Machine)) })
}

// openLayer returns a directory of the host as a detached mount, without the mounts below
// it.
func (d *draft) openLayer(path string) (*os.File, error) {
	file, err := d.open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	return d.copyOf(file, mounts.CopyOne)
}

// assemble returns the merged tree of an overlay. If an attempt shows that its layers
// cannot be ID-mapped, it falls back to the slower overlay with changed owners.
func (d *draft) assemble(ctx context.Context, overlay rootfs.Overlay) (*os.File, error) {
	tree, err := overlay.Assemble()
	if errors.Is(err, idmap.ErrUnmappable) {
		d.notice(fmt.Sprintf("Owners of files are changed in a private copy of the image, which takes time for images of many files: %v", err))
		return overlay.AssembleChowned(ctx)
	}
	return tree, err
}

// makePartitions covers the further partitions of a disk, such as /usr or /var, which are
// mounted below its root. They are treated like the root. An EFI partition is left out:
// machines do not need it, and vfat cannot be a layer.
func (m *Maker) makePartitions(ctx context.Context, d *draft, root rootfs.Overlay) error {
	partitions, err := mounts.Below(d.image)
	if err != nil {
		return err
	}
	for i, partition := range partitions {
		if partition.FSType == "vfat" {
			continue
		}
		overlay := root
		overlay.Lower = []string{filepath.Join(d.image, partition.Path)}
		if root.Memory == 0 {
			overlay.RW = filepath.Join(root.RW, fmt.Sprintf("partition%d", i))
		}
		tree, err := d.assemble(ctx, overlay)
		if err != nil {
			return err
		}
		err = d.stage.Do(func() error { return attachIn(m.dirs.Root(d.spec.Machine), partition.Path, tree) })
		tree.Close()
		if err != nil {
			return fmt.Errorf("mount partition /%s: %w", partition.Path, err)
		}
	}
	return nil
}

// attachIn mounts a detached tree on an existing directory below a mount of the stage.
func attachIn(mount, name string, tree *os.File) error {
	top, err := mounts.Open(mount, "")
	if err != nil {
		return err
	}
	defer top.Close()
	at, err := mounts.OpenBeneath(top, name, unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer at.Close()
	return mounts.Attach(tree, at)
}
