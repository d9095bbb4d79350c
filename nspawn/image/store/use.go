package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// Acquire records that a machine uses an image, and no other, and returns it:
// from now on it is not collected, over restarts of plugin and host, until
// Release. The error is ErrNotFound if the image is not there (any more) and
// has to be fetched.
func (s Store) Acquire(ctx context.Context, machine, digest string) (Image, error) {
	var image Image
	err := s.lockedFor(ctx, machine, func() (err error) {
		if err := checkDigest(digest); err != nil {
			return err
		}
		if image, err = s.image(digest); err != nil {
			return err
		}
		return errors.Join(s.refer(machine, digest), s.touch(digest))
	})
	if err != nil {
		return Image{}, fmt.Errorf("acquire image %s for machine %s: %w", digest, machine, err)
	}
	return image, nil
}

// Release ends a machine's use of its image. It is no error if it has none.
func (s Store) Release(ctx context.Context, machine string) error {
	if err := checkMachine(machine); err != nil {
		return fmt.Errorf("release image of machine %s: %w", machine, err)
	}
	if _, err := os.Lstat(s.refPath(machine)); errors.Is(err, fs.ErrNotExist) {
		return nil // as most machines; who acquires one does not release it meanwhile
	}
	err := s.lockedFor(ctx, machine, func() error {
		if digest, err := s.referred(machine); err == nil {
			if err := s.touch(digest); err != nil {
				return err
			}
		}
		err := os.Remove(s.refPath(machine))
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("release image of machine %s: %w", machine, err)
	}
	return nil
}

func (s Store) lockedFor(ctx context.Context, machine string, work func() error) error {
	if err := checkMachine(machine); err != nil {
		return err
	}
	return s.locked(ctx, work)
}

// refer points the machine's reference at an image. A link needs no sync: it is
// there or not, and after a power cut the machine is not.
func (s Store) refer(machine, digest string) error {
	link := s.tmpName()
	if err := os.Symlink(filepath.Join("..", "images", filepath.Base(s.imagePath(digest))), link); err != nil {
		return err
	}
	return os.Rename(link, s.refPath(machine))
}

// referred returns the digest of the image that a machine uses.
func (s Store) referred(machine string) (string, error) {
	target, err := os.Readlink(s.refPath(machine))
	if err != nil {
		return "", err
	}
	digest, ok := imageOf(filepath.Base(target))
	if !ok {
		return "", fmt.Errorf("%s points to %s, which is not an image", s.refPath(machine), target)
	}
	return digest, nil
}

// touch records that an image was used now.
func (s Store) touch(digest string) error {
	now := time.Now()
	err := os.Chtimes(s.imagePath(digest), now, now)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
