package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// locked calls work, a few file system calls, while no one else changes the store. It
// creates missing folders of the store.
func (s Store) locked(ctx context.Context, work func() error) error {
	for _, folder := range []string{layers.folder, disks.folder, "images", "names", "refs", "tmp"} {
		if err := os.MkdirAll(filepath.Join(s.Dir, folder), 0o700); err != nil {
			return fmt.Errorf("make store: %w", err)
		}
	}
	dir, err := openLocked(ctx, s.Dir, unix.LOCK_EX)
	if err != nil {
		return err
	}
	defer dir.Close()
	return work()
}

// openLocked opens the file at path and locks it (flock(2)). After locking, it checks
// that the file is still at path. The error is fs.ErrNotExist if no file is there, or if
// it was replaced before the lock was taken. It is unix.EWOULDBLOCK if another process
// has the lock and how includes unix.LOCK_NB.
func openLocked(ctx context.Context, path string, how int) (*os.File, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	if err := flock(ctx, file, how); err != nil {
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	if err := checkIsAt(file, path); err != nil {
		file.Close()
		return nil, err
	}
	return file, nil
}

// flock locks a file, and closes it on an error. The system call that waits for the lock
// cannot be interrupted, so once ctx is done, it is left to its goroutine. It ends when
// the holder releases the lock, which happens with the holder's own context at the
// latest.
func flock(ctx context.Context, file *os.File, how int) error {
	err := unix.Flock(int(file.Fd()), how|unix.LOCK_NB)
	if err == nil {
		return nil
	}
	if !errors.Is(err, unix.EWOULDBLOCK) || how&unix.LOCK_NB != 0 {
		file.Close()
		return err
	}
	done := make(chan error)
	go func() {
		err := error(unix.EINTR)
		for errors.Is(err, unix.EINTR) {
			err = unix.Flock(int(file.Fd()), how)
		}
		if err != nil {
			file.Close()
		}
		select {
		case done <- err:
		case <-ctx.Done():
			file.Close()
		}
	}()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func checkIsAt(file *os.File, path string) error {
	open, err := file.Stat()
	if err != nil {
		return err
	}
	named, err := os.Stat(path)
	if err != nil {
		return err
	}
	if !os.SameFile(open, named) {
		return fmt.Errorf("%s was replaced: %w", path, fs.ErrNotExist)
	}
	return nil
}

// inUse reports whether the file at path is locked. The caller holds the lock of the
// store, under which all shared locks are taken.
func inUse(ctx context.Context, path string) (bool, error) {
	file, err := openLocked(ctx, path, unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return true, nil
	}
	if err != nil {
		return false, err
	}
	return false, file.Close()
}
