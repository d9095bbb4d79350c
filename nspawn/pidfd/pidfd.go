// Package pidfd waits for the end of processes that are not our children.
package pidfd

import (
	"os"

	"golang.org/x/sys/unix"
)

// Exited reports whether the process has ended: its pidfd is then readable
// (pidfd_open(2)).
func Exited(pidfd int) bool {
	n, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, 0)
	return err == nil && n == 1
}

// Await waits until the process has ended. The pidfd must have been opened with
// PIDFD_NONBLOCK (Linux 5.10). Closing the file also ends the wait, with an error.
func Await(file *os.File) error {
	conn, err := file.SyscallConn()
	if err != nil {
		return err
	}
	return conn.Read(func(fd uintptr) bool { return Exited(int(fd)) })
}
