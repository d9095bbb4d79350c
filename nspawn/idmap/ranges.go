package idmap

import (
	"errors"
	"fmt"
	"hash/fnv"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"

	"nomad-driver-nspawn/nspawn/filelock"
)

// The range of UIDs and GIDs that systemd reserves for containers
// (https://systemd.io/UIDS-GIDS).
const (
	MinBase = 0x00080000
	maxBase = 0x6FFF0000
	slots   = (maxBase-MinBase)/RangeSize + 1
)

// RangeSize is the number of UIDs, and of GIDs, of a machine.
const RangeSize = 65536

// Ranges hands out ranges of RangeSize UIDs and GIDs to machines. Its record is a
// directory of symbolic links from the base to the machine's name. On a tmpfs, the record
// ends with the boot, as the machines do; files on disk do not depend on it (see package
// rootfs). Any number of processes may share it.
type Ranges struct {
	Dir string // created if missing

	root string // prefix of the host's files in tests
}

// Acquire returns the base of the machine's range. If the machine has none yet, it gets a
// free range, if possible the same one each time. A range is not free if the host has
// users or groups in it, or if systemd-nspawn uses it for a machine.
func (r Ranges) Acquire(name string) (base uint32, err error) {
	if name == "" {
		return 0, errors.New("acquire UID range: no machine name")
	}
	err = r.locked(func() error {
		held, err := r.held()
		if err != nil {
			return err
		}
		if base = held.of(name); base != 0 {
			return nil
		}
		if base, err = r.pick(name, held); err != nil {
			return err
		}
		return os.Symlink(name, r.path(base))
	})
	if err != nil {
		return 0, fmt.Errorf("acquire UID range for %s: %w", name, err)
	}
	return base, nil
}

// Lookup returns the base of the machine's range; ok reports whether it has one.
func (r Ranges) Lookup(name string) (base uint32, ok bool, err error) {
	held, err := r.held()
	if err != nil {
		return 0, false, fmt.Errorf("look up UID range of %s: %w", name, err)
	}
	base = held.of(name)
	return base, base != 0, nil
}

// Release gives the machine's range back. It is not an error if the machine has none.
func (r Ranges) Release(name string) error {
	err := r.locked(func() error {
		held, err := r.held()
		if err != nil {
			return err
		}
		if base := held.of(name); base != 0 {
			return os.Remove(r.path(base))
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("release UID range of %s: %w", name, err)
	}
	return nil
}

func (r Ranges) path(base uint32) string {
	return filepath.Join(r.Dir, strconv.FormatUint(uint64(base), 10))
}

// locked calls work while no other process does the same for this directory. work must be
// short: a few file system calls.
func (r Ranges) locked(work func() error) error {
	return filelock.While(r.Dir, 0o755, work)
}

// holders maps the base of each range to its machine's name.
type holders map[uint32]string

func (h holders) of(name string) (base uint32) {
	for base, holder := range h {
		if holder == name {
			return base
		}
	}
	return 0
}

// held reads the record.
func (r Ranges) held() (holders, error) {
	entries, err := os.ReadDir(r.Dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	held := holders{}
	for _, entry := range entries {
		base, err := strconv.ParseUint(entry.Name(), 10, 32)
		if err != nil {
			continue // not ours
		}
		name, err := os.Readlink(filepath.Join(r.Dir, entry.Name()))
		if errors.Is(err, fs.ErrNotExist) {
			continue // it has just been released
		}
		if err != nil {
			return nil, err
		}
		held[uint32(base)] = name
	}
	return held, nil
}

// pick returns a free range. It tries the ranges in order, beginning at the hash of the
// name.
func (r Ranges) pick(name string, held holders) (uint32, error) {
	host, err := readAccounts(r.root)
	if err != nil {
		return 0, err
	}
	hash := fnv.New32a()
	hash.Write([]byte(name))
	for i := range uint32(slots) {
		base := MinBase + (hash.Sum32()%slots+i)%slots*RangeSize
		if held[base] == "" && !host.overlap(base) && !r.usedByNspawn(base) {
			return base, nil
		}
	}
	return 0, fmt.Errorf("all %d ranges are taken, see %s", slots, r.Dir)
}

// usedByNspawn reports whether a systemd-nspawn that picked its range itself
// (--private-users=pick) uses this one. While it runs, it holds an open file description
// lock on a file named after the base; a file without a lock is a leftover.
func (r Ranges) usedByNspawn(base uint32) bool {
	file, err := os.Open(r.root + "/run/systemd/nspawn-uid/" + strconv.FormatUint(uint64(base), 10))
	if err != nil {
		return false
	}
	defer file.Close()
	lock := unix.Flock_t{Type: unix.F_WRLCK, Whence: unix.SEEK_SET}
	if err := unix.FcntlFlock(file.Fd(), unix.F_OFD_GETLK, &lock); err != nil {
		return true
	}
	return lock.Type != unix.F_UNLCK
}
