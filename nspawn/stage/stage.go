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
type Stage struct{ thread *thread }

// New makes a stage for a machine, pinned by a file in a directory that was prepared, see
// PrepareDir. The machine's own directory is seen in it at its own path, read-only, but
// for its sub-directory mounts, which is a place to attach to.
func New(dir, pin string) (*Stage, error) {
	s := &Stage{thread: newThread()}
	if err := s.make(dir, pin); err != nil {
		s.Close()
		return nil, fmt.Errorf("make the machine's mount namespace: %w", errors.Join(err, Unpin(pin)))
	}
	return s, nil
}

func (s *Stage) make(dir, pin string) error {
	set, err := gather(dir)
	defer set.close()
	if err != nil {
		return err
	}
	if err := s.pin(pin); err != nil {
		return err
	}
	return s.Do(func() error { return set.build(dir) })
}

// Do does work in the namespace.
func (s *Stage) Do(work func() error) error { return s.thread.do(work) }

// Close ends the thread.
func (s *Stage) Close() { s.thread.end() }

// Seal makes the root of the namespace read-only, when all is attached.
func (s *Stage) Seal() error {
	if err := s.Do(seal); err != nil {
		return fmt.Errorf("make the root of the machine's mount namespace read-only: %w", err)
	}
	return nil
}

// pin makes the namespace, a copy of the keeper, and mounts it in that at a file.
func (s *Stage) pin(path string) error {
	keeper, err := os.Open(KeeperOf(path))
	if err != nil {
		return err
	}
	defer keeper.Close()
	pin, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDONLY|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	pin.Close()
	err = onAnyCPU(func(cpu int) error {
		err := s.Do(func() error {
			if err := enter(keeper); err != nil {
				return fmt.Errorf("enter the keeper: %w", err)
			}
			return unshare(cpu)
		})
		if err != nil {
			return err
		}
		return s.mountIn(keeper, filepath.Base(path))
	})
	if err != nil {
		return fmt.Errorf("pin it at %s: %w", path, err)
	}
	return nil
}

// mountIn mounts the namespace at a file of the keeper.
func (s *Stage) mountIn(keeper *os.File, name string) error {
	namespace, err := os.Open(s.thread.namespace())
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
	return s.Do(func() error {
		if err := enter(keeper); err != nil {
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
	})
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
