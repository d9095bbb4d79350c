package inside

import (
	"errors"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// lookAgain is the longest time in milliseconds between two tries to connect. A socket
// that appears in the directory ends the wait, so it matters only where it cannot be
// watched (sysctl fs.inotify.max_user_instances).
const lookAgain = 500

// connect returns a connection to the plugin. While no plugin listens, it waits, as
// long as it takes: a start or a reboot is delayed then, and the task does not end.
//
// It watches the directory only if it has to wait: to end a watch takes the kernel many
// milliseconds (synchronize_srcu).
func connect(dir string) int {
	path := filepath.Join(dir, Socket)
	if connection, err := dial(path); err == nil {
		return connection
	}
	watch := watchDirectory(dir)
	defer unix.Close(watch)
	for {
		if connection, err := dial(path); err == nil {
			return connection
		}
		await(watch)
	}
}

// dial: a descriptor of 64 or above would take the kernel 10 ms (expand_fdtable), so
// this one is closed on failure before the next is opened.
func dial(path string) (int, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	err = unix.EINTR
	for errors.Is(err, unix.EINTR) {
		err = unix.Connect(fd, &unix.SockaddrUnix{Name: path})
	}
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// watchDirectory returns a descriptor that is readable when a socket has appeared in
// the directory, or -1.
func watchDirectory(dir string) int {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return -1
	}
	if _, err := unix.InotifyAddWatch(fd, dir, unix.IN_CREATE|unix.IN_MOVED_TO); err != nil {
		unix.Close(fd)
		return -1
	}
	return fd
}

// await waits for an event of the directory. Poll ignores a descriptor of -1.
func await(watch int) {
	fds := []unix.PollFd{{Fd: int32(watch), Events: unix.POLLIN}}
	if n, err := unix.Poll(fds, lookAgain); err == nil && n > 0 {
		var events [4096]byte
		_, _ = unix.Read(watch, events[:])
	}
}
