// Package parts makes and removes everything that a machine has on the host, except its
// unit. Each part has a file here, and can be found again by the machine's name alone.
package parts

import (
	"context"
	"fmt"
	"slices"

	"nomad-driver-nspawn/nspawn/dirs"
	"nomad-driver-nspawn/nspawn/disk"
	"nomad-driver-nspawn/nspawn/filelock"
	"nomad-driver-nspawn/nspawn/idmap"
	"nomad-driver-nspawn/nspawn/image/store"
	"nomad-driver-nspawn/nspawn/machine"
	"nomad-driver-nspawn/nspawn/network"
	"nomad-driver-nspawn/nspawn/programs"
	"nomad-driver-nspawn/nspawn/stage"
)

// Maker makes and removes the parts of machines.
type Maker struct {
	dirs   dirs.Dirs
	ranges idmap.Ranges
	images store.Store
	disks  disk.Mounts
	locks  filelock.Names

	networks *network.Host // nil without networks
}

// New returns a maker for machines at these places.
func New(dirs dirs.Dirs, locks filelock.Names, networks *network.Host) *Maker {
	return &Maker{
		dirs: dirs, ranges: idmap.Ranges{Dir: dirs.Ranges()}, images: store.Store{Dir: dirs.Images()},
		disks: disk.Mounts{Dir: dirs.Disks()}, locks: locks, networks: networks,
	}
}

// part is one of the things that a machine has on the host.
type part struct {
	name string
	// make creates the part for a machine that is about to start. After an error, make
	// does not clean up: remove does.
	make func(context.Context, *draft) error
	// remove removes what exists of the part, by the machine's name. Often that is
	// nothing.
	remove func(ctx context.Context, name string) error
	// owners returns the machines that have the part, for parts that can outlive all
	// others.
	owners func() ([]string, error)
}

// parts returns the parts in the order in which they are made. They are removed in the
// opposite order, so that the machine's directory is removed last.
func (m *Maker) parts() []part {
	return []part{
		{name: "directory", make: m.makeDirectory, remove: m.removeDirectory, owners: m.directoryOwners},
		{name: "credentials", make: m.makeCredentials},
		{name: "UID range", make: m.makeRange, remove: m.removeRange},
		{name: "writable layer", make: m.makeWritable, remove: m.removeWritable, owners: m.writableOwners},
		{name: "image", make: m.makeImage, remove: m.removeImage, owners: m.imageOwners},
		{name: "network", make: m.makeNetwork, remove: m.removeNetwork, owners: m.networks.Owners},
		{name: "names", make: m.makeNames, remove: m.leaveZone},
		{name: "nosymfollow mounts", make: m.makeNoSymfollow, remove: m.removeNoSymfollow},
		{name: "stage", make: m.makeStage, remove: m.removeStage, owners: m.stageOwners},
		{name: "root", make: m.makeRoot},
		{name: "directories in /run", make: m.makeRunDirs},
		{name: "devices", make: m.makeDevices},
		{name: "mounts", make: m.makeMounts, remove: m.removeMounts},
		{name: "journal", make: m.makeJournal, remove: m.removeJournal},
		{name: "seal", make: m.makeSeal},
	}
}

// Prepare makes the parts of a machine that will run with these programs, in a stage that
// NewStage returned. After an error it does not clean up: Remove does. It returns the
// spec, completed with what was found out, and the host's side of the machine.
func (m *Maker) Prepare(ctx context.Context, s machine.Spec, p programs.Programs, stage *stage.Stage, notice func(string)) (machine.Spec, machine.Host, error) {
	d := &draft{spec: s, programs: p, stage: stage, notice: notice}
	defer d.close()
	if err := Check(s); err != nil {
		return s, machine.Host{}, err
	}
	for _, part := range m.parts() {
		if part.make == nil {
			continue
		}
		if err := part.make(ctx, d); err != nil {
			return s, machine.Host{}, err
		}
	}
	return d.spec, HostOf(m.dirs, d.spec, d.base, p), nil
}

// Remove removes what Prepare made, and what nspawn leaves behind.
func (m *Maker) Remove(ctx context.Context, name string) error {
	for _, part := range slices.Backward(m.parts()) {
		if part.remove == nil {
			continue
		}
		if err := part.remove(ctx, name); err != nil {
			return fmt.Errorf("%s: %w", part.name, err)
		}
	}
	return nil
}

// Owners are the machines that have a part, each as often as it has parts that can outlive
// all others. A container that has got an interface of the host gives it back with a name
// and an alias of its own: what is no name of a machine is left out.
func (m *Maker) Owners() (machines []string, err error) {
	for _, part := range m.parts() {
		if part.owners == nil {
			continue
		}
		owners, err := part.owners()
		if err != nil {
			return nil, fmt.Errorf("look for machines by their %s: %w", part.name, err)
		}
		machines = append(machines, owners...)
	}
	return slices.DeleteFunc(machines, func(name string) bool { return !machine.IsName(name) }), nil
}
