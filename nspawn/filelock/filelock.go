// Package filelock lets one at a time work on a directory (While), or on a machine (Names).
package filelock

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// While calls work while nobody else who asks for the same directory works. It makes
// the directory, with the mode, if it is missing. The lock (flock(2)) ends with the
// process, however that ends. work has to be short: the wait for it has no deadline.
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
