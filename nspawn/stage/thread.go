package stage

import (
	"errors"
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// thread is a thread of ours that goes to other mount namespaces.
type thread struct {
	work chan func()
	id   int
}

func newThread() *thread {
	t := &thread{work: make(chan func())}
	go t.run()
	return t
}

// run ends with its thread, which is in another namespace and so good for nothing else.
func (t *thread) run() {
	runtime.LockOSThread()
	// Go never ends the main thread, and /proc/self shows its namespaces: hold it
	// while another thread does the work.
	if unix.Gettid() == unix.Getpid() {
		done := make(chan struct{})
		go func() {
			t.run()
			close(done)
		}()
		<-done
		runtime.UnlockOSThread()
		return
	}
	t.id = unix.Gettid()
	for work := range t.work {
		work()
	}
}

// do does work on the thread.
func (t *thread) do(work func() error) error {
	done := make(chan error)
	t.work <- func() { done <- work() }
	return <-done
}

func (t *thread) end() { close(t.work) }

// namespace is a path of the mount namespace that the thread is in. It has done work
// before.
func (t *thread) namespace() string { return fmt.Sprintf("/proc/self/task/%d/ns/mnt", t.id) }

// unshare moves the thread that calls it to a new mount namespace, made on a CPU; -1 is
// any.
func unshare(cpu int) error {
	if cpu >= 0 {
		var before, one unix.CPUSet
		if err := unix.SchedGetaffinity(0, &before); err != nil {
			return fmt.Errorf("look up own CPUs: %w", err)
		}
		defer unix.SchedSetaffinity(0, &before)
		one.Set(cpu)
		if err := unix.SchedSetaffinity(0, &one); err != nil {
			return fmt.Errorf("move to CPU %d: %w", cpu, err)
		}
	}
	return unix.Unshare(unix.CLONE_NEWNS)
}

// enter moves the thread that calls it to a mount namespace.
func enter(namespace *os.File) error {
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return err
	}
	return unix.Setns(int(namespace.Fd()), unix.CLONE_NEWNS)
}

// onAnyCPU makes a namespace and mounts it, on one CPU after the other until it can be.
//
// The kernel mounts only namespaces that are younger than one's own, by their numbers
// (mnt_ns_loop in fs/namespace.c). Linux 6.18 gives each CPU numbers of its own: where
// ours was made not long ago, as in a container, another CPU's may be too low.
func onAnyCPU(makeAndMount func(cpu int) error) error {
	var cpus unix.CPUSet
	if err := unix.SchedGetaffinity(0, &cpus); err != nil {
		return fmt.Errorf("look up own CPUs: %w", err)
	}
	for cpu, left := -1, cpus.Count(); ; left-- {
		err := makeAndMount(cpu)
		older := errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ELOOP) // of mount(2), of move_mount(2)
		if !older || left == 0 {
			return err
		}
		for cpu++; !cpus.IsSet(cpu); cpu++ {
		}
	}
}
