// Package stage makes the mount namespace in which systemd-nspawn runs a machine.
//
// The namespace has a root file system of its own. It contains only what systemd-nspawn
// itself needs of the host, most of it read-only, and what its maker attaches: the
// machine's root, and everything of the host that the machine will see. So no path of a
// job or of an image is resolved in the host's own tree, and systemd-nspawn, which runs
// as root there, can write to almost nothing. After a reboot of the guest the same mounts
// are used again. They exist in no other namespace. In particular they are not in the
// host's mount table, which systemd copies for many of the services it starts.
//
// A file pins the namespace: the namespace is mounted on the file, in another namespace
// that contains only such mounts, the keeper. The stage lives as long as that mount, or
// as long as a process is in it.
package stage

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"nomad-driver-nspawn/nspawn/mounts"
)

// Stage is a mount namespace. Until Close, a thread of this process is in it.
type Stage struct {
	thread *worker
	keeper *os.File
}

// New makes a stage that shows no machine yet. pins is a directory that PrepareDir has
// prepared.
func New(pins string) (*Stage, error) {
	s, err := newStage(filepath.Join(pins, keeperName))
	if err != nil {
		return nil, fmt.Errorf("make a mount namespace: %w", err)
	}
	return s, nil
}

func newStage(file string) (*Stage, error) {
	host, err := openHostParts()
	defer host.close()
	if err != nil {
		return nil, err
	}
	keeper, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	thread, err := newWorker()
	if err != nil {
		keeper.Close()
		return nil, err
	}
	s := &Stage{thread: thread, keeper: keeper}
	err = s.Do(func() error {
		if err := s.copyKeeper(); err != nil {
			return err
		}
		return host.build()
	})
	if err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

// copyKeeper moves this thread to a copy of the keeper that can be mounted in the keeper
// (see namespaceID).
func (s *Stage) copyKeeper() error {
	if err := enter(s.keeper); err != nil {
		return err
	}
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return err
	}
	lowest := namespaceID(s.keeper)
	if id, err := s.id(); err != nil || id >= lowest {
		return err
	}
	cpus, err := ownCPUs()
	if err != nil {
		return err
	}
	for _, cpu := range cpus {
		if err := unshareOn(cpu); err != nil {
			return err
		}
		if id, err := s.id(); err != nil || id >= lowest {
			return err
		}
	}
	return errors.New("its ID is lower than that of the keeper, on each CPU that this process may run on")
}

func (s *Stage) id() (uint64, error) {
	namespace, err := s.thread.namespace()
	if err != nil {
		return 0, err
	}
	defer namespace.Close()
	return namespaceID(namespace), nil
}

// Pin shows the machine's own directory dir at the same path in the stage. It is
// read-only there, except for its subdirectory mounts, in which the caller attaches
// mounts. From then on the stage lives as long as the given file in the directory of
// pins.
func (s *Stage) Pin(dir, file string) error {
	if err := s.pin(dir, file); err != nil {
		return fmt.Errorf("make the mount namespace of %s: %w", filepath.Base(dir), errors.Join(err, Unpin(file)))
	}
	return nil
}

func (s *Stage) pin(dir, file string) error {
	own, err := copyPart(shown{path: dir})
	if err != nil {
		return err
	}
	defer own.Close()
	pin, err := os.OpenFile(file, os.O_CREATE|os.O_EXCL|os.O_RDONLY|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	pin.Close()
	return s.Do(func() error {
		if err := showMachine(own, dir); err != nil {
			return err
		}
		if err := s.mountAt(filepath.Base(file)); err != nil {
			return fmt.Errorf("pin it at %s: %w", file, err)
		}
		return nil
	})
}

// mountAt mounts the namespace of this thread on a file in the keeper.
func (s *Stage) mountAt(name string) error {
	namespace, err := s.thread.namespace()
	if err != nil {
		return err
	}
	defer namespace.Close()
	fd, err := unix.OpenTree(int(namespace.Fd()), "", unix.AT_EMPTY_PATH|unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return fmt.Errorf("make a mount of it: %w", err)
	}
	tree := os.NewFile(uintptr(fd), namespace.Name())
	defer tree.Close()
	if err := enter(s.keeper); err != nil {
		return err
	}
	at, err := mounts.Open("/"+name, "")
	if err != nil {
		return err
	}
	defer at.Close()
	if err := mounts.Attach(tree, at); err != nil {
		return err
	}
	return enter(namespace)
}

// Do calls work on the thread in the namespace.
func (s *Stage) Do(work func() error) error { return s.thread.do(work) }

// Close ends the thread.
func (s *Stage) Close() {
	s.thread.end()
	s.keeper.Close()
}

// Seal makes the root of the namespace read-only. The caller calls it when everything is
// attached.
func (s *Stage) Seal() error {
	if err := s.Do(seal); err != nil {
		return fmt.Errorf("make the root of the machine's mount namespace read-only: %w", err)
	}
	return nil
}

// Unpin releases a namespace. The kernel frees it, with all of its mounts, once no
// process is in it. It is not an error if the file does not exist. Removing the file also
// removes the mount on it in other namespaces, here in the keeper.
func Unpin(file string) error {
	if err := os.Remove(file); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("unpin mount namespace: %w", err)
	}
	return nil
}
