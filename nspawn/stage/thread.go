package stage

import (
	"fmt"
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// thread is a thread of ours that goes to other mount namespaces.
type thread struct {
	work       chan func()
	namespaces *os.File // its directory in /proc, which it has not in sight everywhere
}

func newThread() (*thread, error) {
	t := &thread{work: make(chan func())}
	go t.run()
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

func (t *thread) end() {
	close(t.work)
	t.namespaces.Close()
}

// namespace opens the mount namespace that the thread is in.
func (t *thread) namespace() (*os.File, error) {
	fd, err := unix.Openat(int(t.namespaces.Fd()), "mnt", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open own mount namespace: %w", err)
	}
	return os.NewFile(uintptr(fd), "mount namespace"), nil
}

// enter moves the thread that calls it to a mount namespace.
func enter(namespace *os.File) error {
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return fmt.Errorf("leave what threads share: %w", err)
	}
	if err := unix.Setns(int(namespace.Fd()), unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("enter %s: %w", namespace.Name(), err)
	}
	return nil
}

// unshareOn moves the thread that calls it to a new mount namespace, made on a CPU.
func unshareOn(cpu int) error {
	var before, one unix.CPUSet
	if err := unix.SchedGetaffinity(0, &before); err != nil {
		return fmt.Errorf("look up own CPUs: %w", err)
	}
	defer unix.SchedSetaffinity(0, &before)
	one.Set(cpu)
	if err := unix.SchedSetaffinity(0, &one); err != nil {
		return fmt.Errorf("move to CPU %d: %w", cpu, err)
	}
	return unix.Unshare(unix.CLONE_NEWNS)
}

// ownCPUs are the CPUs that we may run on.
func ownCPUs() (cpus []int, err error) {
	var set unix.CPUSet
	if err := unix.SchedGetaffinity(0, &set); err != nil {
		return nil, fmt.Errorf("look up own CPUs: %w", err)
	}
	for cpu := 0; len(cpus) < set.Count(); cpu++ {
		if set.IsSet(cpu) {
			cpus = append(cpus, cpu)
		}
	}
	return cpus, nil
}

// numberOf returns the kernel's number of a mount namespace. One can be mounted only in
// those of lower numbers (mnt_ns_loop in fs/namespace.c).
//
// It is 0 before Linux 6.11, which does not tell, and numbers them in the order that they
// are made in. Linux 6.18 gives each CPU thousands of numbers at a time, so that one that
// is made later, on another CPU, may have a lower number.
func numberOf(namespace *os.File) (number uint64) {
	const getNumber = 0x8008b705 // NS_GET_MNTNS_ID of linux/nsfs.h
	_, _, _ = unix.Syscall(unix.SYS_IOCTL, namespace.Fd(), getNumber, uintptr(unsafe.Pointer(&number)))
	return number
}
