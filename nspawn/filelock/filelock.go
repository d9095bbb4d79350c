// Package filelock provides exclusive locks on a directory (While) and on names such as
// those of machines (Names).
package filelock

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// While calls work under an exclusive lock on the directory path. It creates the
// directory with the given mode if it is missing. The lock (flock(2)) ends with the
// process, however the process ends. work must be short, because the wait for the lock
// has no deadline.
func While(path string, mode os.FileMode, work func() error) error {
	if err := os.MkdirAll(path, mode); err != nil {
		return err
	}
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	defer dir.Close()
	err = unix.EINTR
	for errors.Is(err, unix.EINTR) {
		err = unix.Flock(int(dir.Fd()), unix.LOCK_EX)
	}
	if err != nil {
		return fmt.Errorf("lock %s: %w", path, err)
	}
	return work()
}
