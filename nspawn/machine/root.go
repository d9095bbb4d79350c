package machine

import "fmt"

// Root is the root file system of a machine.
type Root struct {
	// Image is the directory tree to run, an absolute path on the host. Instead of it,
	// Disk can be the path of a raw disk image or block device, or StoreDigest the digest
	// of an image in the store. A disk is mounted when the machine starts, and Image is
	// set to its mount point.
	Image, Disk, StoreDigest string
	// DiskPolicy is the image policy of a disk (see disk.Image).
	DiskPolicy string
	// InPlace runs Image itself, exclusively, instead of a copy-on-write layer over it
	// that is discarded with the machine.
	InPlace bool
	// ReadOnly mounts the root read-only.
	ReadOnly bool
	// Volatile is a value of --volatile=. With a copy-on-write root, "overlay" makes no
	// difference.
	Volatile string
	// Tmpfs lists file systems in memory to mount in the machine.
	Tmpfs []Tmpfs
	// Inaccessible lists paths to hide (--inaccessible=).
	Inaccessible []string
	// SharedMemory is the size of /dev/shm; zero selects nspawn's default.
	SharedMemory uint64
	// UserNamespace gives the machine a UID range of its own.
	UserNamespace bool
	// WritableLayer describes the layer that receives the changes of a copy-on-write root.
	WritableLayer WritableLayer
	// Directories of a copy-on-write root are created before the start if they are
	// missing, with mode 0755, owned by the machine's root.
	Directories []string
	// Files are written into a copy-on-write root before the start, by absolute path. A
	// file with Keep set does not replace a file of the image.
	Files []File
}

// WritableLayer says where a machine's changes are stored, and limits their size. The zero
// value is the file system of the driver's state, without a limit.
type WritableLayer struct {
	Max      uint64 // bytes; required with InMemory, otherwise 0 means no limit
	InMemory bool   // the memory counts as the machine's
}

// File is a small file of the root file system, with mode 0644, owned by the machine's
// root.
type File struct {
	Path    string
	Content string
	Keep    bool
}

func (r Root) directoryArgs(h Host) []string {
	return []string{
		"--directory=" + h.Root,
		"--timezone=off", // otherwise nspawn writes to the image's /etc/localtime
	}
}

// variables returns variables for nspawn's own environment (systemd's ENVIRONMENT.md). If
// changes to the root are discarded anyway, /tmp is a directory of the root and counts
// towards its limit; otherwise it is a file system in memory.
func (r Root) variables() []string {
	if r.InPlace || r.ReadOnly || r.Volatile == "yes" || r.Volatile == "state" {
		return nil
	}
	return []string{"SYSTEMD_NSPAWN_TMPFS_TMP=0"}
}

func (r Root) args() (args []string) {
	if r.ReadOnly {
		args = append(args, "--read-only")
	}
	if r.Volatile != "overlay" || r.InPlace {
		args = append(args, optional("--volatile=", r.Volatile)...)
	}
	for _, mount := range r.Tmpfs {
		args = append(args, mount.arg())
	}
	if r.SharedMemory > 0 {
		args = append(args, fmt.Sprintf("--tmpfs=/dev/shm:mode=1777,size=%d", r.SharedMemory))
	}
	for _, path := range r.Inaccessible {
		args = append(args, "--inaccessible="+path) // nspawn takes all of it as the path
	}
	return args
}
