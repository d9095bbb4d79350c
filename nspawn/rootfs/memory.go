package rootfs

import (
	"fmt"
	"strconv"

	"golang.org/x/sys/unix"

	"nomad-driver-nspawn/nspawn/quota"
)

// openMemory returns a detached tmpfs to write to. Only the overlay will hold it.
//
// It is not ID-mapped, as that needs Linux 6.3, but has the UIDs of the machine
// itself: no later start will see it with another base.
func (o Overlay) openMemory(top int) (layer int, err error) {
	fs, err := unix.Fsopen("tmpfs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("open tmpfs: %w", err)
	}
	defer unix.Close(fs)
	for option, value := range map[string]string{
		"mode":      "0700",
		"size":      strconv.FormatUint(o.Memory, 10),
		"nr_inodes": strconv.FormatUint(quota.Inodes(o.Memory), 10),
	} {
		if err := unix.FsconfigSetString(fs, option, value); err != nil {
			return -1, fmt.Errorf("set %s=%s of tmpfs: %w", option, value, err)
		}
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return -1, fmt.Errorf("make tmpfs: %w", err)
	}
	if layer, err = unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, 0); err != nil {
		return -1, fmt.Errorf("mount tmpfs: %w", err)
	}
	if err := o.prepareRW(fmt.Sprintf("/proc/self/fd/%d", layer), top, o.UIDBase); err != nil {
		unix.Close(layer)
		return -1, fmt.Errorf("prepare tmpfs: %w", err)
	}
	return layer, nil
}
