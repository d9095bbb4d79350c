package parts

import (
	"os"

	"nomad-driver-nspawn/nspawn/machine"
	"nomad-driver-nspawn/nspawn/mounts"
	"nomad-driver-nspawn/nspawn/paths"
	"nomad-driver-nspawn/nspawn/programs"
	"nomad-driver-nspawn/nspawn/stage"
)

// draft is a machine while it is prepared: the request, and what was found out and made
// for it so far.
type draft struct {
	spec   machine.Spec
	notice func(string) // reports what takes long

	base  uint32   // first UID of its range; 0 without a user namespace
	users *os.File // the map of ID-mapped mounts; nil without a user namespace

	image string   // the directory tree to run: the one of the spec, or the mount point of its disk
	disk  string   // the raw disk or block device that holds image, or ""
	lower []string // layers of a copy-on-write root, the topmost first

	names machine.Names // the spec's names, with the addresses of a given network

	programs programs.Programs
	stage    *stage.Stage // closed by the caller
}

// close releases what is needed only during the preparation.
func (d *draft) close() {
	if d.users != nil {
		d.users.Close()
	}
}

// open opens a path of the host that the machine will see. After that, nobody can change
// which file it is.
func (d *draft) open(path string) (*os.File, error) {
	if d.isUntrusted(path) {
		return mounts.Open(path, d.spec.Untrusted)
	}
	return mounts.Open(path, "")
}

// copyOf returns a detached copy, made with [mounts.Copy] or [mounts.CopyOne], of a file
// that open returned. The machine may follow symbolic links in it.
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

// isUntrusted reports whether machines can change which file is at a path of the host.
func (d *draft) isUntrusted(path string) bool {
	return d.spec.Untrusted != "" && paths.Within(d.spec.Untrusted, path)
}
