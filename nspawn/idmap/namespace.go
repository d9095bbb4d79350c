// Package idmap gives machines UIDs of their own: it hands out ranges, makes the user
// namespaces that stand for them, and maps the owners of mounts by these.
package idmap

import (
	"fmt"
	"os"
)

// Namespace returns a user namespace that serves as the map of ID-mapped
// mounts: UIDs and GIDs 0 to 65535 on disk appear as base and following. Host
// root appears too, as 65536 on disk, because overlayfs (in its work directory)
// and systemd-nspawn (making mount points) create files as host root, which
// fails with EOVERFLOW where root has no mapping.
func Namespace(base uint32) (*os.File, error) {
	holder, err := newHolder()
	if err != nil {
		return nil, fmt.Errorf("make user namespace: %w", err)
	}
	defer holder.release()
	return holder.namespace(base)
}

// namespace sets the map of the process's user namespace, which it opens.
func (h holder) namespace(base uint32) (*os.File, error) {
	proc := fmt.Sprintf("/proc/%d/", h.pid)
	ids := fmt.Appendf(nil, "0 %d %d\n%d 0 1\n", base, RangeSize, RangeSize)
	for _, file := range []string{"uid_map", "gid_map"} {
		if err := os.WriteFile(proc+file, ids, 0); err != nil {
			return nil, fmt.Errorf("map user namespace %d: %w", base, err)
		}
	}
	namespace, err := os.Open(proc + "ns/user")
	if err != nil {
		return nil, fmt.Errorf("open user namespace %d: %w", base, err)
	}
	return namespace, nil
}
