package store

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"nomad-driver-nspawn/nspawn/tree"
)

// errGone means that the pull that had a workspace has given it up.
var errGone = errors.New("another pull has given up its workspace")

// workspace returns an empty, locked directory in which to create an item from an origin.
// It waits while another pull from that origin has it. The error is errGone if that pull
// has then completed the item or given up.
func (s Store) workspace(ctx context.Context, it item, origin string) (*os.File, error) {
	path := s.workPath(it, origin)
	dir, err := s.makeWorkspace(ctx, path)
	if errors.Is(err, unix.EWOULDBLOCK) {
		dir, err = openLocked(ctx, path, unix.LOCK_EX)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil, errGone
	}
	if err != nil {
		return nil, err
	}
	_, err = dir.Readdirnames(1)
	if errors.Is(err, io.EOF) {
		return dir, nil
	}
	defer dir.Close()
	if err != nil {
		return nil, err
	}
	if err := tree.Remove(path); err != nil { // left by a process that was killed
		return nil, err
	}
	return nil, errGone
}

// makeWorkspace makes a workspace and locks it under the lock of the store. Without that,
// a sweep could take the new one for a leftover, and those that wait for it would fetch
// the item a second time. The error is unix.EWOULDBLOCK if a pull already has it.
func (s Store) makeWorkspace(ctx context.Context, path string) (dir *os.File, err error) {
	err = s.locked(ctx, func() error {
		if err := os.Mkdir(path, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		dir, err = openLocked(ctx, path, unix.LOCK_EX|unix.LOCK_NB)
		return err
	})
	return dir, err
}

// sweep removes everything from tmp/ that is not being written any more.
func (s Store) sweep(ctx context.Context) error {
	garbage, err := s.claimGarbage(ctx)
	for _, dir := range garbage {
		if ctx.Err() == nil {
			err = errors.Join(err, tree.Remove(dir.Name()))
		}
		dir.Close()
	}
	if err == nil {
		err = ctx.Err()
	}
	return err
}

// claimGarbage locks directories to be removed. It removes files at once, because files
// are written only under the lock of the store.
func (s Store) claimGarbage(ctx context.Context) (dirs []*os.File, err error) {
	err = s.locked(ctx, func() error {
		entries, err := os.ReadDir(s.tmp())
		if err != nil {
			return err
		}
		for _, entry := range entries {
			path := filepath.Join(s.tmp(), entry.Name())
			if !entry.IsDir() {
				if err := os.Remove(path); err != nil {
					return err
				}
				continue
			}
			dir, err := openLocked(ctx, path, unix.LOCK_EX|unix.LOCK_NB)
			switch {
			case errors.Is(err, unix.EWOULDBLOCK), errors.Is(err, fs.ErrNotExist):
				continue
			case err != nil:
				return err
			}
			dirs = append(dirs, dir)
		}
		return nil
	})
	return dirs, err
}

// writeFile creates or replaces the file at path. The file is complete even after a power
// failure. The caller holds the lock of the store.
func (s Store) writeFile(path string, text []byte) error {
	tmp := s.tmpName()
	err := writeSynced(tmp, text)
	if err == nil {
		err = os.Rename(tmp, path)
	}
	if err != nil {
		_ = os.Remove(tmp) // It may not exist.
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}

func writeSynced(path string, text []byte) error {
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = file.Write(text)
	if err == nil {
		err = file.Sync()
	}
	return errors.Join(err, file.Close())
}

// tmpName returns a new unique path in tmp/.
func (s Store) tmpName() string { return filepath.Join(s.tmp(), rand.Text()) }
