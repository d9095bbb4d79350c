package inside

import (
	"errors"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// retryInterval is the longest time in milliseconds between two attempts to connect. A
// socket that appears in the directory ends the wait at once. So the interval matters
// only if the directory cannot be watched (sysctl fs.inotify.max_user_instances).
const retryInterval = 500

// connect returns a connection to the plugin. If no plugin listens, it waits for one, for
// as long as it takes: that delays a start or a reboot, but does not end the task.
//
// The directory is watched only when connect has to wait, because removing a watch takes
// the kernel many milliseconds (synchronize_srcu).
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

// dial connects to a socket. On failure it closes its descriptor before the next attempt
// opens another one: a descriptor of 64 or above would cost the kernel 10 ms
// (expand_fdtable).
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

// watchDirectory returns a descriptor that becomes readable when a socket appears in the
// directory, or -1 if the directory cannot be watched.
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

// await waits for an event in the directory, or for the retry interval. Poll ignores a
// descriptor of -1.
func await(watch int) {
	fds := []unix.PollFd{{Fd: int32(watch), Events: unix.POLLIN}}
	if n, err := unix.Poll(fds, retryInterval); err == nil && n > 0 {
		var events [4096]byte
		_, _ = unix.Read(watch, events[:])
	}
}
