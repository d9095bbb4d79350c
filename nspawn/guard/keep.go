// Package guard protects the host where machines write to directories of its own, and
// somebody on the host, as a Nomad agent, follows as root what they find there.
package guard

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"nomad-driver-nspawn/nspawn/idmap"
	"nomad-driver-nspawn/nspawn/machine"
	"nomad-driver-nspawn/nspawn/mounts"
)

// Dir does on the host what the kernel needs to keep a directory, see [machine.Keep].
// A mount of it with IDs apart does the rest.
func Protect(dir *os.File, what machine.Keep) error {
	switch what {
	case machine.KeepEntries:
		// It is the only one that machines own: so they write to it, and own none of
		// those in it that the host has made.
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

// nobodys is an owner that no machine has, by no map.
const nobodys = 0xFFFFFFFE

func give(dir *os.File, owner int) error {
	return unix.Fchownat(int(dir.Fd()), "", owner, owner, unix.AT_EMPTY_PATH)
}

// Keep does for running machines what a start of theirs did for what a bind shows,
// where somebody has undone that since: an agent gives directories to another user when
// it starts. The directory lies below one that machines write to.
func ProtectBind(bind machine.Bind, untrusted string) error {
	dir, err := mounts.Open(bind.Source, untrusted)
	if err != nil {
		return err
	}
	defer dir.Close()
	return Protect(dir, bind.Keep)
}
