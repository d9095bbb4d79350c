package rootfs

import (
	"fmt"
	"strconv"

	"golang.org/x/sys/unix"

	"nomad-driver-nspawn/nspawn/mounts"
	"nomad-driver-nspawn/nspawn/quota"
)

// openMemory returns a detached, writable tmpfs. Only the overlay will hold it.
//
// The tmpfs is not ID-mapped, because that needs Linux 6.3. It has the machine's UIDs
// instead, which is safe: no later start will use it with another base.
func (o Overlay) openMemory(top int) (layer int, err error) {
	tree, err := mounts.Tmpfs(map[string]string{
		"mode":      "0700",
		"size":      strconv.FormatUint(o.Memory, 10),
		"nr_inodes": strconv.FormatUint(quota.Inodes(o.Memory), 10),
	}, 0)
	if err != nil {
		return -1, err
	}
	defer tree.Close()
	if err := o.prepareRW(fmt.Sprintf("/proc/self/fd/%d", tree.Fd()), top, o.UIDBase); err != nil {
		return -1, fmt.Errorf("prepare tmpfs: %w", err)
	}
	return unix.FcntlInt(tree.Fd(), unix.F_DUPFD_CLOEXEC, 0)
}
