package rootfs

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// Bind shows a directory of the host at a second place, ID-mapped as the layers of
// an [Overlay] are. What is mounted below it is not shown, and what will be mounted
// at the second place does not appear at the first.
type Bind struct{ Source, Target string }

// MountBinds mounts binds for a machine whose root has the UID base. [Unmount] takes
// each of them away.
//
// systemd-nspawn can show the directory itself by --bind=…:idmap, but starts a
// process for each, and takes 2 ms for that.
func MountBinds(base uint32, binds []Bind) error {
	users, err := userNamespace(base)
	if err != nil {
		return err
	}
	defer users.Close()
	mapped := unix.MountAttr{
		Attr_set:    unix.MOUNT_ATTR_IDMAP,
		Propagation: unix.MS_SLAVE,
		Userns_fd:   uint64(users.Fd()),
	}
	for _, bind := range binds {
		if err := bind.mount(&mapped); err != nil {
			return fmt.Errorf("mount %s at %s: %w", bind.Source, bind.Target, err)
		}
	}
	return nil
}

func (b Bind) mount(mapped *unix.MountAttr) error {
	tree, err := openLayer(b.Source, 0)
	if err != nil {
		return err
	}
	defer unix.Close(tree)
	if err := unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, mapped); err != nil {
		return fmt.Errorf("map owners: %w", explainIDMap(b.Source, err))
	}
	return unix.MoveMount(tree, "", unix.AT_FDCWD, b.Target, unix.MOVE_MOUNT_F_EMPTY_PATH)
}
