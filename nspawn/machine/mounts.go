package machine

import (
	"cmp"
	"slices"
	"strings"
)

// Bind makes a file or directory of the host visible in the machine. In a
// user namespace it is ID-mapped: the owner 0 on the host is root inside.
type Bind struct {
	Source      string
	Destination string
	ReadOnly    bool
	// Owned is a directory that is only this machine's: where its file system
	// cannot be ID-mapped, as tmpfs before Linux 6.3, what root has in it is
	// given to the machine's root instead. Other binds are refused then.
	Owned bool
	// Keep is what the host keeps of it, whose root follows paths there.
	Keep Keep
	// Unlinked is a directory in which, as long as the machine is there, the host's root
	// follows no symbolic link.
	Unlinked bool
}

// Keep says what no machine can change in a directory that it sees, by no mount of its
// own and whoever has passed on a descriptor.
type Keep string

const (
	// KeepEntries: the directories that the host has put there stay where they are.
	// Machines have others beside them, with IDs of their own on disk.
	KeepEntries Keep = "entries"
	// KeepAll: no machine writes there. The directory is one of KeepEntries.
	KeepAll Keep = "all"
	// KeepFromLinks: machines do what they like, but the host's root never follows a
	// symbolic link there, also when the machine is gone.
	KeepFromLinks Keep = "from links"
)

// Overlay merges directories into one tree, which the machine sees at
// Destination. As with Bind, the owner 0 on the host is root inside.
//
// It is not left to nspawn's --overlay=: nspawn cannot ID-map its layers, and in
// a user namespace all of it would be nobody's.
type Overlay struct {
	Lower []Layer // the lowest first, as with --overlay=
	// Upper takes what the machine changes, and keeps it. With "" it is
	// discarded with the machine.
	Upper       string
	ReadOnly    bool // there is no upper layer, and at least two lower ones
	Destination string
}

// Memory is a file system in memory that belongs to a user of the machine. nspawn's own
// belong to the host's root, who is nobody in a user namespace.
type Memory struct {
	Destination string
	UID, GID    uint32            // in the machine
	Options     map[string]string // of tmpfs(5): mode, size, nr_inodes
}

// Layer is a directory of the host, or, by its path in there, of the machine's root.
type Layer struct {
	Path   string
	InRoot bool
}

func bindArgs(s Spec, h Host) []string {
	binds := slices.Concat(h.Binds, gateBinds(h))
	slices.SortFunc(binds, func(a, b Bind) int { return cmp.Compare(a.Destination, b.Destination) })
	var args []string
	for _, b := range binds {
		option := "--bind="
		if b.ReadOnly {
			option = "--bind-ro="
		}
		args = append(args, option+escapePath(b.Source)+":"+escapePath(b.Destination))
	}
	return args
}

// escapePath protects the separators of --bind=, see systemd-nspawn(1).
func escapePath(path string) string {
	return strings.NewReplacer(`\`, `\\`, `:`, `\:`).Replace(path)
}
