package machine

import "fmt"

// Root is the root file system of a machine.
type Root struct {
	// Image is the directory tree to run, an absolute path on the host; or Disk
	// that of a raw disk image or block device, or Stored the digest of an image
	// in the store. A disk is mounted, and Image is where, when the machine is
	// started.
	Image, Disk, Stored string
	// DiskPolicy is the image policy of a disk, see disk.Image.
	DiskPolicy string
	// InPlace runs Image itself, exclusively, instead of a copy-on-write
	// layer over it that is discarded with the machine.
	InPlace bool
	// ReadOnly mounts the root read-only.
	ReadOnly bool
	// Volatile is a value of --volatile=. With a copy-on-write root, "overlay"
	// has nothing to add.
	Volatile string
	// Tmpfs are mounted in the machine, PATH or PATH:OPTIONS (--tmpfs=), and
	// Inaccessible are paths that are hidden (--inaccessible=).
	Tmpfs, Inaccessible []string
	// SharedMemory is the size of /dev/shm; zero is nspawn's choice.
	SharedMemory uint64
	// UserNamespace gives the machine a UID range of its own.
	UserNamespace bool
	// Writable is what takes the changes of a copy-on-write root.
	Writable Writable
	// Directories of a copy-on-write root are made before the start, as root's and with
	// mode 0755, if they are missing.
	Directories []string
	// Files are written into a copy-on-write root before the start, by
	// absolute path. A Files entry with Keep set does not replace what the
	// image has.
	Files []File
}

// Writable says where what a machine writes goes, and how much that may be. The zero
// value is the file system of the driver's state, without a limit.
type Writable struct {
	Max      uint64 // bytes; needed in memory, else 0 is no limit
	InMemory bool   // which counts as the machine's
}

// File is a small file of the root file system, mode 0644, owned by its root.
type File struct {
	Path    string
	Content string
	Keep    bool
}

func (r Root) directoryArgs(h Host) []string {
	return []string{
		"--directory=" + h.Root,
		"--timezone=off", // else nspawn writes to the image's /etc/localtime
	}
}

// variables are for nspawn's own environment (systemd's ENVIRONMENT.md). Where what is
// written to the root is discarded, /tmp is a part of it and counts for its limit, not a
// file system in memory.
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
		args = append(args, "--tmpfs="+mount)
	}
	if r.SharedMemory > 0 {
		args = append(args, fmt.Sprintf("--tmpfs=/dev/shm:mode=1777,size=%d", r.SharedMemory))
	}
	for _, path := range r.Inaccessible {
		args = append(args, "--inaccessible="+escapePath(path))
	}
	return args
}
