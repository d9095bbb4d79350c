package idmap

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"nomad-driver-nspawn/nspawn/mounts"
)

// Bind shows a directory of the host at a second place, ID-mapped as the layers of
// a root are. What is mounted below it is not shown, and what will be mounted
// at the second place does not appear at the first.
type Bind struct{ Source, Target string }

// MountBinds mounts binds for a machine whose root has the UID base. mounts.Unmount takes
// each of them away.
//
// systemd-nspawn can show the directory itself by --bind=…:idmap, but starts a
// process for each, and takes 2 ms for that.
func MountBinds(base uint32, binds []Bind) error {
	users, err := Namespace(base)
	if err != nil {
		return err
	}
	defer users.Close()
	for _, bind := range binds {
		if err := bind.mount(users); err != nil {
			return fmt.Errorf("mount %s at %s: %w", bind.Source, bind.Target, err)
		}
	}
	return nil
}

func (b Bind) mount(users *os.File) error {
	tree, err := mounts.Clone(b.Source, 0)
	if err != nil {
		return err
	}
	defer unix.Close(tree)
	if err := Map(tree, b.Source, users); err != nil {
		return fmt.Errorf("map owners: %w", err)
	}
	if err := unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Propagation: unix.MS_SLAVE}); err != nil {
		return fmt.Errorf("stop mount propagation to the source: %w", err)
	}
	return unix.MoveMount(tree, "", unix.AT_FDCWD, b.Target, unix.MOVE_MOUNT_F_EMPTY_PATH)
}
