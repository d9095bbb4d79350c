package store

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// Lookup returns the image to which name was last resolved, and the time of that. The
// error is ErrNotFound if the image must be fetched.
func (s Store) Lookup(name string) (Image, time.Time, error) {
	found, err := readName(s.namePath(name))
	if err != nil {
		return Image{}, time.Time{}, fmt.Errorf("look up image %s: %w", name, err)
	}
	image, err := s.image(found.Image)
	if err != nil {
		return Image{}, time.Time{}, fmt.Errorf("look up image %s: %w", name, err)
	}
	return image, found.Resolved, nil
}

// image reads an image. If it returns an error, the image contains what could be read.
func (s Store) image(digest string) (image Image, err error) {
	path := s.imagePath(digest)
	if err := readRecord(path, &image); err != nil {
		return Image{}, err
	}
	err = image.check()
	if err == nil && image.Digest != digest {
		err = errors.New("it belongs to image " + image.Digest)
	}
	if err != nil {
		return Image{}, damaged(path, err)
	}
	for _, it := range image.items() {
		_, err := os.Lstat(s.payload(it))
		if errors.Is(err, fs.ErrNotExist) {
			return image, fmt.Errorf("%w: image %s lacks %s", ErrNotFound, digest, s.payload(it))
		}
		if err != nil {
			return image, err
		}
	}
	return image, nil
}

// writeImage does not change an existing image, because another Pull may hold it.
func (s Store) writeImage(image Image) error {
	text, err := json.MarshalIndent(image, "", "\t")
	if err != nil {
		return err
	}
	path := s.imagePath(image.Digest)
	if old, err := os.ReadFile(path); err == nil && bytes.Equal(old, text) {
		return s.touch(image.Digest)
	}
	return s.writeFile(path, text)
}

// resolution records to which image a name was resolved.
type resolution struct {
	Name     string    `json:"name"`
	Image    string    `json:"image"`
	Resolved time.Time `json:"resolved"`
}

// namePath hashes the name, which may be a URL of any length.
func (s Store) namePath(name string) string {
	sum := sha256.Sum256([]byte(name))
	return filepath.Join(s.names(), hex.EncodeToString(sum[:])+".json")
}

func (s Store) writeName(name, digest string) error {
	text, err := json.MarshalIndent(resolution{Name: name, Image: digest, Resolved: time.Now().UTC()}, "", "\t")
	if err != nil {
		return err
	}
	return s.writeFile(s.namePath(name), text)
}

func readName(path string) (found resolution, err error) {
	if err := readRecord(path, &found); err != nil {
		return resolution{}, err
	}
	if err := checkDigest(found.Image); err != nil {
		return resolution{}, damaged(path, err)
	}
	return found, nil
}

// readRecord reads a JSON file. Only the content of the file counts as damage: an image
// that cannot be read at the moment is not lost.
func readRecord(path string, into any) error {
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return ErrNotFound
	}
	if err != nil {
		return err
	}
	if err := json.Unmarshal(text, into); err != nil {
		return damaged(path, err)
	}
	return nil
}

func damaged(path string, err error) error {
	return fmt.Errorf("%w: %s is damaged: %w", ErrNotFound, path, err)
}

// imageOf returns the digest of the image to which a file in images/ belongs.
func imageOf(file string) (digest string, ok bool) {
	name, ok := strings.CutSuffix(file, ".json")
	digest = digestOf(name)
	return digest, ok && checkDigest(digest) == nil
}
