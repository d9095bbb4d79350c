package machine

import (
	"cmp"
	"slices"
	"strings"
)

// Bind makes a file or directory of the host visible in the machine. In a user namespace
// it is ID-mapped: files of UID 0 on the host belong to root inside.
type Bind struct {
	Source      string
	Destination string
	ReadOnly    bool
	// InRoot means that Source is a directory of the machine's own root. Its files already
	// have the machine's owners.
	InRoot bool
	// ChownFallback marks a directory that only this machine uses. Some file systems
	// cannot be ID-mapped, for example tmpfs before Linux 6.3. There, the files of root in
	// such a directory are given to the machine's root instead, and other binds are
	// refused.
	ChownFallback bool
	// Keep protects the directory on the host, for example because the host's root
	// follows paths in it.
	Keep Keep
	// NoSymfollow marks a directory in which the host's root follows no symbolic link for as
	// long as the machine exists.
	NoSymfollow bool
}

// Keep says what no machine can change in a directory that it sees: neither by mounting
// something itself, nor through a file descriptor that another process has passed on.
type Keep string

const (
	// KeepEntries keeps the directories that the host has created there in their place.
	// Machines may create other entries beside them, with their own IDs on disk.
	KeepEntries Keep = "entries"
	// KeepAll lets no machine write to the directory. It lies in a KeepEntries directory.
	KeepAll Keep = "all"
	// KeepFromLinks lets machines do anything, but the host's root never follows a
	// symbolic link there, even after the machine is gone.
	KeepFromLinks Keep = "from links"
)

// Overlay merges directories into one tree, which the machine sees at Destination. As
// with Bind, files of UID 0 on the host belong to root inside.
//
// nspawn's --overlay= is not used because nspawn cannot ID-map the layers: in a user
// namespace, everything would belong to nobody.
type Overlay struct {
	Lower []Layer // the lowest first, as in --overlay=
	// Upper receives and keeps the machine's changes. If it is "", the changes are
	// discarded with the machine.
	Upper       string
	ReadOnly    bool // there is no upper layer, and there are at least two lower ones
	Destination string
}

// Memory is a file system in memory that belongs to a user of the machine. The ones that
// nspawn mounts belong to the host's root, which is nobody in a user namespace.
type Memory struct {
	Destination string
	UID, GID    uint32            // IDs in the machine
	Options     map[string]string // of tmpfs(5): mode, size, nr_inodes
}

// Layer is a directory of the host or, with InRoot, of the machine's root.
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

// escapePath escapes the separators of --bind= (systemd-nspawn(1)).
func escapePath(path string) string { return pathEscaper.Replace(path) }

var pathEscaper = strings.NewReplacer(`\`, `\\`, `:`, `\:`)
