package parts

import (
	"os"

	"nomad-driver-nspawn/nspawn/machine"
	"nomad-driver-nspawn/nspawn/mounts"
	"nomad-driver-nspawn/nspawn/paths"
	"nomad-driver-nspawn/nspawn/programs"
	"nomad-driver-nspawn/nspawn/stage"
)

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
	return d.spec.Untrusted != "" && paths.Within(d.spec.Untrusted, path)
}
