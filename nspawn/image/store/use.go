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

// Acquire records that a machine uses an image, instead of any other, and returns the
// image. From then on until Release, the image is not collected, even across restarts of
// the plugin and the host. The error is ErrNotFound if the image is not, or no longer, in
// the store and must be fetched.
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

// Release ends a machine's use of its image. It is not an error if the machine uses none.
func (s Store) Release(ctx context.Context, machine string) error {
	if err := checkMachine(machine); err != nil {
		return fmt.Errorf("release image of machine %s: %w", machine, err)
	}
	if _, err := os.Lstat(s.refPath(machine)); errors.Is(err, fs.ErrNotExist) {
		return nil // true of most machines; the caller does not acquire an image for it at the same time
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

// refer points the machine's reference at an image. The link need not be synced: it
// exists or it does not, and after a power failure the machine does not exist any more.
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

// touch records that an image has just been used.
func (s Store) touch(digest string) error {
	now := time.Now()
	err := os.Chtimes(s.imagePath(digest), now, now)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
