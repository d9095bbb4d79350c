// Package guard protects the host where machines write to directories of the host, and a
// process of the host, such as a Nomad agent, follows paths in them as root.
//
// Nomad is kept from following symbolic links in two ways, because neither can replace the
// other. Both mount a directory on itself with nosymfollow. For most allocations, package
// parts does that with the directories that the machines write to, as long as there are
// machines (machine.Bind.NoSymfollow): afterwards, Nomad must be able to move a sticky
// disk, and a mount point cannot be moved. In the allocation of a dispatched job, Nomad
// writes the payload to any path, before the task's machine exists and after another one
// has ended. So ForbidLinks does it with the whole allocation, until Nomad has removed it.
package guard

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"nomad-driver-nspawn/nspawn/idmap"
	"nomad-driver-nspawn/nspawn/machine"
	"nomad-driver-nspawn/nspawn/mounts"
)

// Protect does on the host what the kernel needs to protect a directory (see
// [machine.Keep]). The rest is done by an ID-mapped mount of the directory with IDs apart
// from those of the host.
func Protect(dir *os.File, what machine.Keep) error {
	switch what {
	case machine.KeepEntries:
		// Only this directory belongs to machines. So machines can write to it, but own
		// none of the entries that the host has created in it.
		if err := give(dir, idmap.ApartFirst); err != nil {
			return fmt.Errorf("give %s to machines: %w", dir.Name(), err)
		}
	case machine.KeepAll:
		if err := give(dir, nobodys); err != nil {
			return fmt.Errorf("take %s from machines: %w", dir.Name(), err)
		}
	case machine.KeepFromLinks:
		return mounts.ForbidLinks(dir)
	}
	return nil
}

// nobodys is an owner that no map gives to a machine.
const nobodys = 0xFFFFFFFE

func give(dir *os.File, owner int) error {
	return unix.Fchownat(int(dir.Fd()), "", owner, owner, unix.AT_EMPTY_PATH)
}

// ProtectBind repeats for running machines what their start did for a bind, in case
// someone has undone it: an agent gives directories to another user when it starts. The
// directory lies below untrusted, to which machines write.
func ProtectBind(bind machine.Bind, untrusted string) error {
	dir, err := mounts.Open(bind.Source, untrusted)
	if err != nil {
		return err
	}
	defer dir.Close()
	return Protect(dir, bind.Keep)
}
