package nspawn

import (
	"context"
	"fmt"
	"os"
	"slices"

	"nomad-driver-nspawn/nspawn/machine"
	"nomad-driver-nspawn/nspawn/mounts"
	"nomad-driver-nspawn/nspawn/programs"
	"nomad-driver-nspawn/nspawn/stage"
)

// part is one of the things that a machine has on the host.
type part struct {
	name string
	// make makes it for a machine that is to be started. It undoes nothing: remove
	// does.
	make func(context.Context, *draft) error
	// remove removes what there is of it by the machine's name; often that is
	// nothing.
	remove func(ctx context.Context, machine string) error
	// owners are the machines that have it, for parts that can outlive all others.
	owners func() ([]string, error)
}

// parts are all that a machine has on the host but its unit, in the order in which
// they are made. They are removed in the opposite one, so that the machine's
// directory goes last.
func (m *Manager) parts() []part {
	return []part{
		{name: "directory", make: m.makeDirectory, remove: m.removeDirectory, owners: m.directoryOwners},
		{name: "credentials", make: m.makeCredentials},
		{name: "UID range", make: m.makeRange, remove: m.removeRange},
		{name: "writable layer", make: m.makeWritable, remove: m.removeWritable, owners: m.writableOwners},
		{name: "image", make: m.makeImage, remove: m.removeImage, owners: m.imageOwners},
		{name: "network", make: m.makeNetwork, remove: m.removeNetwork, owners: m.networks.Owners},
		{name: "names", make: m.makeNames},
		{name: "unlinked directories", make: m.makeUnlinked, remove: m.removeUnlinked},
		{name: "stage", make: m.makeStage, remove: m.removeStage, owners: m.stageOwners},
		{name: "root", make: m.makeRoot},
		{name: "devices", make: m.makeDevices},
		{name: "mounts", make: m.makeMounts, remove: m.removeMounts},
		{name: "journal", make: m.makeJournal, remove: m.removeJournal},
		{name: "seal", make: m.makeSeal},
	}
}

// draft is a machine while it is prepared: what was asked for, and what was found out
// and made for it so far.
type draft struct {
	spec   machine.Spec
	notice func(string) // told what will take its time

	base  uint32   // first UID of its range; 0 without a user namespace
	users *os.File // the map of ID-mapped mounts; nil without a user namespace

	image string   // the directory tree to run: the spec's, or where its disk is mounted
	disk  string   // the raw disk or block device it is on, if it is
	lower []string // layers of a copy-on-write root, the topmost first

	names machine.Names // the spec's, with the addresses of a network that is given

	programs programs.Programs
	stage    *stage.Stage // the caller's
}

// close lets go of what is only needed to prepare the machine.
func (d *draft) close() {
	if d.users != nil {
		d.users.Close()
	}
}

// open opens what is at a path of the host that the machine is to see. From there on
// nobody can change what that is.
func (d *draft) open(path string) (*os.File, error) {
	if d.isUntrusted(path) {
		return mounts.Open(path, d.spec.Untrusted)
	}
	return mounts.Open(path, "")
}

// copyOf returns a detached copy, by [mounts.Copy] or [mounts.CopyOne], of what open has
// opened. What a machine does with the symbolic links in it is its own affair.
func (d *draft) copyOf(file *os.File, by func(*os.File) (*os.File, error)) (*os.File, error) {
	tree, err := by(file)
	if err != nil || !d.isUntrusted(file.Name()) {
		return tree, err
	}
	if err := mounts.AllowLinks(tree); err != nil {
		tree.Close()
		return nil, err
	}
	return tree, nil
}

// isUntrusted reports whether machines can change what is at a path of the host.
func (d *draft) isUntrusted(path string) bool {
	return d.spec.Untrusted != "" && within(d.spec.Untrusted, path)
}

// prepare makes the parts of a machine.
func (m *Manager) prepare(ctx context.Context, s machine.Spec, p programs.Programs, stage *stage.Stage, notice func(string)) (*draft, error) {
	d := &draft{spec: s, programs: p, stage: stage, notice: notice}
	defer d.close()
	if err := checkDestinations(s); err != nil {
		return nil, err
	}
	for _, part := range m.parts() {
		if part.make == nil {
			continue
		}
		if err := part.make(ctx, d); err != nil {
			return nil, err
		}
	}
	return d, nil
}

// removeParts removes what prepare made, and what nspawn leaves.
func (m *Manager) removeParts(ctx context.Context, machine string) error {
	for _, part := range slices.Backward(m.parts()) {
		if part.remove == nil {
			continue
		}
		if err := part.remove(ctx, machine); err != nil {
			return fmt.Errorf("%s: %w", part.name, err)
		}
	}
	return nil
}
