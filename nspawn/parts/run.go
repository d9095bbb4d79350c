package parts

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"nomad-driver-nspawn/nspawn/machine"
	"nomad-driver-nspawn/nspawn/paths"
)

// maxRunDirs limits the mounts that an image can ask for.
const maxRunDirs = 64

// ownRunDirs are the directories in /run that systemd-nspawn makes, and the one by which
// programs recognize systemd.
var ownRunDirs = []string{"host", "systemd"}

// makeRunDirs shows the directories that the image has in /run. systemd-nspawn mounts an
// empty file system there, and many images have a directory for a socket or a PID file
// that their program cannot create, such as /run/postgresql. They remain part of the root.
//
// An init that is booted creates what it needs in an empty /run.
func (m *Maker) makeRunDirs(_ context.Context, d *draft) error {
	volatile := d.spec.Root.Volatile
	if d.spec.Mode == machine.Boot || d.spec.Root.InPlace || volatile != "" && volatile != "overlay" {
		return nil
	}
	var names []string
	err := d.stage.Do(func() (err error) {
		names, err = runDirs(m.dirs.Root(d.spec.Machine))
		return err
	})
	if err != nil {
		return fmt.Errorf("look for directories of the image in /run: %w", err)
	}
	d.spec.Binds = append(d.spec.Binds, runBinds(d.spec, names)...)
	return nil
}

// runBinds returns the binds of directories in /run, except where the job itself has
// something else.
func runBinds(s machine.Spec, names []string) (binds []machine.Bind) {
	points := s.MountPoints()
	for _, name := range names {
		dir := filepath.Join("/run", name)
		taken := slices.ContainsFunc(points, func(point machine.MountPoint) bool {
			path := filepath.Clean(point.Path)
			inside := below(dir, path) && point.Option != "bind" && point.Option != "overlay" // nspawn mounts it by its path
			return inside || paths.Within(path, dir)
		})
		if !taken {
			binds = append(binds, machine.Bind{Source: dir, InRoot: true, Destination: dir})
		}
	}
	return binds
}

// runDirs returns the names of the directories in /run of a root.
func runDirs(root string) (names []string, err error) {
	tree, err := os.OpenRoot(root)
	if err != nil {
		return nil, err
	}
	defer tree.Close()
	run, err := tree.Open("run")
	if err != nil {
		return nil, err
	}
	defer run.Close()
	entries, err := run.ReadDir(-1)
	if err != nil {
		return nil, err
	}
	for _, entry := range entries {
		if entry.IsDir() && !slices.Contains(ownRunDirs, entry.Name()) {
			names = append(names, entry.Name())
		}
	}
	slices.Sort(names)
	return names[:min(len(names), maxRunDirs)], nil
}
