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
// The namespace is pinned by a file that it is mounted at. It lives for as long as
// that, or as somebody is in it.
package stage

import (
	"errors"
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// Stage is a mount namespace with a thread of ours in it, until Close.
type Stage struct {
	work   chan func()
	thread int
}

// New makes a stage for a machine, pinned by a file, whose directory has to be a private
// mount, see PrepareDir. The machine's own directory is seen in it at its own path,
// read-only, but for its sub-directory mounts, which is a place to attach to.
func New(dir, pin string) (*Stage, error) {
	s := &Stage{work: make(chan func())}
	go s.run()
	err := s.pin(pin)
	if err == nil {
		err = s.Do(func() error { return build(dir) })
	}
	if err != nil {
		s.Close()
		return nil, fmt.Errorf("make the machine's mount namespace: %w", errors.Join(err, Unpin(pin)))
	}
	return s, nil
}

// run ends with its thread, which is in the namespace and so good for nothing else.
func (s *Stage) run() {
	runtime.LockOSThread()
	// Go never ends the main thread, and /proc/self shows its namespaces: hold it
	// while another thread does the work.
	if unix.Gettid() == unix.Getpid() {
		done := make(chan struct{})
		go func() {
			s.run()
			close(done)
		}()
		<-done
		runtime.UnlockOSThread()
		return
	}
	for work := range s.work {
		work()
	}
}

// Do does work in the namespace.
func (s *Stage) Do(work func() error) error {
	done := make(chan error)
	s.work <- func() { done <- work() }
	return <-done
}

// Close ends the thread.
func (s *Stage) Close() { close(s.work) }

// Seal makes the root of the namespace read-only, when all is attached.
func (s *Stage) Seal() error {
	if err := s.Do(seal); err != nil {
		return fmt.Errorf("make the root of the machine's mount namespace read-only: %w", err)
	}
	return nil
}

// pin makes the namespace and mounts it at a file.
//
// The kernel mounts only namespaces that are younger than one's own, by their numbers
// (mnt_ns_loop in fs/namespace.c). Linux 6.18 gives each CPU numbers of its own: where
// ours was made not long ago, as in a container, another CPU's may be too low.
func (s *Stage) pin(path string) error {
	pin, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDONLY|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	pin.Close()
	var cpus unix.CPUSet
	if err := unix.SchedGetaffinity(0, &cpus); err != nil {
		return fmt.Errorf("look up own CPUs: %w", err)
	}
	for cpu, left := -1, cpus.Count(); ; left-- {
		err := s.Do(func() error { return s.unshare(cpu) })
		if err != nil {
			return err
		}
		err = unix.Mount(fmt.Sprintf("/proc/self/task/%d/ns/mnt", s.thread), path, "", unix.MS_BIND, "")
		if !errors.Is(err, unix.EINVAL) || left == 0 {
			if err != nil {
				err = fmt.Errorf("pin it at %s: %w", path, err)
			}
			return err
		}
		for cpu++; !cpus.IsSet(cpu); cpu++ {
		}
	}
}

// unshare moves the thread to a new namespace, made on a CPU; -1 is any.
func (s *Stage) unshare(cpu int) error {
	if cpu >= 0 {
		var one unix.CPUSet
		one.Set(cpu)
		if err := unix.SchedSetaffinity(0, &one); err != nil {
			return fmt.Errorf("move to CPU %d: %w", cpu, err)
		}
	}
	s.thread = unix.Gettid()
	return unix.Unshare(unix.CLONE_NEWNS)
}

// Unpin lets go of a namespace, and of all that is mounted in it once nobody is in it.
// It is not an error if there is none.
func Unpin(file string) error {
	err := unix.Unmount(file, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("unpin mount namespace %s: %w", file, err)
	}
	if err := os.Remove(file); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("unpin mount namespace: %w", err)
	}
	return nil
}
