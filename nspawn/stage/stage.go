// Package stage makes the mount namespace that systemd-nspawn runs a machine in.
//
// It has a root file system of its own, which holds nothing of the host but what
// systemd-nspawn itself needs, most of it read-only, and what its maker attaches: the
// machine's root and all that it will see of the host. No path of a job or of an image
// is resolved in the host's own tree, and whatever systemd-nspawn does as root in
// there, it can write next to nowhere. A reboot of the guest uses the very same
// mounts. They are in no other namespace: a machine does not make those of the host
// more, which systemd copies for many a service it starts.
//
// The namespace is pinned by a file that it is mounted at, in a namespace that has only
// such mounts, the keeper. It lives for as long as that, or as somebody is in it.
package stage

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"nomad-driver-nspawn/nspawn/mounts"
)

// Stage is a mount namespace with a thread of ours in it, until Close.
type Stage struct {
	thread *thread
	keeper *os.File
}

// New makes a stage that shows no machine yet. Pins is a directory that was prepared, see
// PrepareDir.
func New(pins string) (*Stage, error) {
	s, err := newStage(filepath.Join(pins, keeperName))
	if err != nil {
		return nil, fmt.Errorf("make a mount namespace: %w", err)
	}
	return s, nil
}

func newStage(file string) (*Stage, error) {
	set, err := gather()
	defer set.close()
	if err != nil {
		return nil, err
	}
	keeper, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	thread, err := newThread()
	if err != nil {
		keeper.Close()
		return nil, err
	}
	s := &Stage{thread: thread, keeper: keeper}
	err = s.Do(func() error {
		if err := s.copyKeeper(); err != nil {
			return err
		}
		return set.build()
	})
	if err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

// copyKeeper moves this thread to a copy of the keeper that can be mounted in the keeper.
func (s *Stage) copyKeeper() error {
	if err := enter(s.keeper); err != nil {
		return err
	}
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return err
	}
	lowest := numberOf(s.keeper)
	if number, err := s.number(); err != nil || number >= lowest {
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
		if number, err := s.number(); err != nil || number >= lowest {
			return err
		}
	}
	return errors.New("it is numbered before the one that is to keep it, on each CPU that this process may run on")
}

func (s *Stage) number() (uint64, error) {
	namespace, err := s.thread.namespace()
	if err != nil {
		return 0, err
	}
	defer namespace.Close()
	return numberOf(namespace), nil
}

// Pin shows a machine's own directory at its own path, read-only, but for its
// sub-directory mounts, which is a place to attach to. From then on the stage lives as
// long as the file, which is in the directory of pins.
func (s *Stage) Pin(dir, file string) error {
	if err := s.pin(dir, file); err != nil {
		return fmt.Errorf("make the mount namespace of %s: %w", filepath.Base(dir), errors.Join(err, Unpin(file)))
	}
	return nil
}

func (s *Stage) pin(dir, file string) error {
	own, err := copyOf(shown{path: dir})
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

// mountAt mounts the namespace, which this thread is in, at a file of the keeper.
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

// Do does work in the namespace.
func (s *Stage) Do(work func() error) error { return s.thread.do(work) }

// Close ends the thread.
func (s *Stage) Close() {
	s.thread.end()
	s.keeper.Close()
}

// Seal makes the root of the namespace read-only, when all is attached.
func (s *Stage) Seal() error {
	if err := s.Do(seal); err != nil {
		return fmt.Errorf("make the root of the machine's mount namespace read-only: %w", err)
	}
	return nil
}

// Unpin lets go of a namespace, and of all that is mounted in it once nobody is in it.
// It is not an error if there is none. A file that is removed takes what is mounted at
// it in other namespaces with it, here in the keeper.
func Unpin(file string) error {
	if err := os.Remove(file); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("unpin mount namespace: %w", err)
	}
	return nil
}
