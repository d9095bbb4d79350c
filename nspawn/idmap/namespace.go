// Package idmap gives machines UIDs of their own: it hands out ranges of UIDs, makes the
// user namespaces that represent them, and ID-maps mounts with these.
package idmap

import (
	"fmt"
	"os"
)

// Namespace returns a user namespace that serves as the map of ID-mapped mounts: UIDs and
// GIDs 0 to 65535 on disk appear as base and following.
//
// Host root is mapped as well, to 65536 on disk. overlayfs (in its work directory) and
// systemd-nspawn (for mount points) create files as host root, which fails with EOVERFLOW
// if root has no mapping.
func Namespace(base uint32) (*os.File, error) { return newNamespace(base, 0) }

// ApartFirst is the first ID on disk that [NamespaceApart] maps. No account has an ID
// above 2^31 (systemd's UIDS-GIDS.md).
const ApartFirst = 0xFFFE0000

// NamespaceApart is like Namespace, for IDs on disk from ApartFirst on. Files with IDs
// that Namespace maps have no owner here. The kernel lets nobody rename or remove such a
// file through the mount, nor change the entries of such a directory.
func NamespaceApart(base uint32) (*os.File, error) { return newNamespace(base, ApartFirst) }

func newNamespace(base, first uint32) (*os.File, error) {
	holder, err := newHolder()
	if err != nil {
		return nil, fmt.Errorf("make user namespace: %w", err)
	}
	defer holder.release()
	return holder.namespace(base, first)
}

// namespace sets the ID map of the process's user namespace and opens the namespace.
func (h holder) namespace(base, first uint32) (*os.File, error) {
	proc := fmt.Sprintf("/proc/%d/", h.pid)
	ids := fmt.Appendf(nil, "%d %d %d\n%d 0 1\n", first, base, RangeSize, first+RangeSize)
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
