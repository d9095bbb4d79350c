package stage

import (
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"

	"nomad-driver-nspawn/nspawn/thread"
)

// worker is a thread of its own that can move to other mount namespaces.
type worker struct {
	work       chan func()
	namespaces *os.File // the thread's directory /proc/…/ns, which is not visible in every namespace
}

func newWorker() (*worker, error) {
	t := &worker{work: make(chan func())}
	go thread.Run(func() error {
		for work := range t.work {
			work()
		}
		return nil
	})
	err := t.do(func() (err error) {
		t.namespaces, err = os.Open("/proc/thread-self/ns")
		return err
	})
	if err != nil {
		t.end()
		return nil, err
	}
	return t, nil
}

// do calls work on the thread and waits for it.
func (t *worker) do(work func() error) error {
	done := make(chan error)
	t.work <- func() { done <- work() }
	return <-done
}

func (t *worker) end() {
	close(t.work)
	t.namespaces.Close()
}

// namespace opens the current mount namespace of the thread.
func (t *worker) namespace() (*os.File, error) {
	fd, err := unix.Openat(int(t.namespaces.Fd()), "mnt", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open own mount namespace: %w", err)
	}
	return os.NewFile(uintptr(fd), "mount namespace"), nil
}

// enter moves the calling thread to a mount namespace.
func enter(namespace *os.File) error {
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return fmt.Errorf("stop sharing the file system root with other threads: %w", err)
	}
	if err := unix.Setns(int(namespace.Fd()), unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("enter %s: %w", namespace.Name(), err)
	}
	return nil
}

// unshareOn moves the calling thread to a new mount namespace that is made on the given
// CPU.
func unshareOn(cpu int) error {
	var before, one unix.CPUSet
	if err := unix.SchedGetaffinity(0, &before); err != nil {
		return fmt.Errorf("look up the CPUs of this process: %w", err)
	}
	defer unix.SchedSetaffinity(0, &before)
	one.Set(cpu)
	if err := unix.SchedSetaffinity(0, &one); err != nil {
		return fmt.Errorf("move to CPU %d: %w", cpu, err)
	}
	return unix.Unshare(unix.CLONE_NEWNS)
}

// ownCPUs returns the CPUs on which this process may run.
func ownCPUs() (cpus []int, err error) {
	var set unix.CPUSet
	if err := unix.SchedGetaffinity(0, &set); err != nil {
		return nil, fmt.Errorf("look up the CPUs of this process: %w", err)
	}
	for cpu := 0; len(cpus) < set.Count(); cpu++ {
		if set.IsSet(cpu) {
			cpus = append(cpus, cpu)
		}
	}
	return cpus, nil
}

// namespaceID returns the kernel's ID of a mount namespace. A namespace can be mounted
// only in namespaces with lower IDs (mnt_ns_loop in fs/namespace.c).
//
// Before Linux 6.11, which cannot report it, the result is 0. Those kernels number the
// namespaces in the order of their creation. Linux 6.18 reserves thousands of IDs per CPU
// at a time, so a namespace made later on another CPU may have a lower ID.
func namespaceID(namespace *os.File) (id uint64) {
	const getNumber = 0x8008b705 // NS_GET_MNTNS_ID of linux/nsfs.h
	_, _, _ = unix.Syscall(unix.SYS_IOCTL, namespace.Fd(), getNumber, uintptr(unsafe.Pointer(&id)))
	return id
}
