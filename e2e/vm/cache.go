package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// cacheDir is a directory in the cache of the disposable hosts.
func cacheDir(sub string) (string, error) {
	base := os.Getenv("NSPAWN_TEST_CACHE")
	if base == "" {
		base = "/var/cache/nomad-driver-nspawn"
	}
	dir := filepath.Join(base, sub)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("create cache: %w", err)
	}
	return dir, nil
}

// cached returns the directory name-HASH of the cache, where HASH is the hash of recipe,
// and calls fill if it does not exist. Only a finished one gets that name, and only one
// process at a time makes it.
func cached(ctx context.Context, name, recipe string, fill func(ctx context.Context, dir string) error) (string, error) {
	top, err := cacheDir("vm")
	if err != nil {
		return "", err
	}
	lock, err := lockDir(top, unix.LOCK_EX)
	if err != nil {
		return "", err
	}
	defer lock.Close()
	hash := sha256.Sum256([]byte(recipe))
	dir := filepath.Join(top, name+"-"+hex.EncodeToString(hash[:6]))
	if _, err := os.Stat(dir); err == nil {
		return dir, nil
	}
	next := filepath.Join(top, "."+name+".next")
	if err := os.RemoveAll(next); err != nil { // of a process that was killed
		return "", err
	}
	if err := os.Mkdir(next, 0o700); err != nil {
		return "", err
	}
	if err := fill(ctx, next); err != nil {
		return "", errors.Join(fmt.Errorf("make %s: %w", name, err), os.RemoveAll(next))
	}
	return dir, os.Rename(next, dir)
}

// lockDir holds a lock on a directory until the file is closed.
func lockDir(dir string, how int) (*os.File, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), how); err != nil {
		return nil, errors.Join(fmt.Errorf("lock %s: %w", dir, err), f.Close())
	}
	return f, nil
}

// work is a directory for the files of one run. Directories of killed runs are recognized
// by their free locks and removed by the next run.
type work struct {
	dir  string
	lock *os.File
}

func newWork() (work, error) {
	top, err := cacheDir("vm/runs")
	if err != nil {
		return work{}, err
	}
	guard, err := lockDir(top, unix.LOCK_EX)
	if err != nil {
		return work{}, err
	}
	defer guard.Close()
	if err := sweep(top); err != nil {
		return work{}, err
	}
	dir, err := os.MkdirTemp(top, "")
	if err != nil {
		return work{}, fmt.Errorf("create directory of the run: %w", err)
	}
	lock, err := lockDir(dir, unix.LOCK_EX)
	return work{dir, lock}, err
}

func sweep(top string) error {
	dirs, err := filepath.Glob(filepath.Join(top, "*"))
	for _, dir := range dirs {
		lock, lockErr := lockDir(dir, unix.LOCK_EX|unix.LOCK_NB)
		if lockErr != nil { // it is in use
			continue
		}
		err = errors.Join(err, os.RemoveAll(dir), lock.Close())
	}
	return err
}

func (w work) path(name string) string { return filepath.Join(w.dir, name) }

func (w work) remove() {
	if err := os.RemoveAll(w.dir); err != nil {
		progress("remove files of the run: %v", err)
	}
	w.lock.Close()
}
