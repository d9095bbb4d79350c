// Package store keeps unpacked images on disk, by digest. It knows no registry
// and no HTTP: callers hand it functions that fill a directory or a file.
//
// There is no daemon and no database, only directories, rename and flock, so
// any number of processes may share a store and any of them may be killed at
// any point:
//
//	layers/sha256-HEX/tree        an unpacked OCI layer or tarball, beside its size
//	disks/sha256-HEX/disk.raw     a raw disk, beside its size
//	images/sha256-HEX.json        an Image; the time of change is that of last use
//	names/HASH.json               what a name, say alpine:3, was last resolved to
//	refs/MACHINE                  symbolic link to the image that a machine uses
//	tmp/                          what is being written or removed
//
// These rules make it safe:
//
//   - What has its name is complete. A layer is written in tmp/, synced, and
//     renamed; it is renamed back into tmp/ to be removed.
//   - All that is outside tmp/ is changed only with the lock of the store, a
//     flock on its directory, held for a few file system calls.
//   - A directory in tmp/ belongs to the process that holds its exclusive flock. Its
//     name follows from the digest and from where the item comes from, so whoever wants
//     the same layer from there waits for that lock, and nobody else does. Without a
//     holder it is garbage, for anybody to remove.
//   - A Pull holds a shared flock on each layer, disk and image it was given,
//     which keeps them from Collect until it is closed, or dies.
//
// Locks end with their process and with the boot, names and references do not.
package store

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// ErrNotFound says that an image is not in the store, or is there but damaged,
// which the error tells. Either way it has to be fetched.
var ErrNotFound = errors.New("not in the store")

// Store is a directory of images on a local file system.
type Store struct {
	Dir string // absolute, made with mode 0700 if missing; without symbolic links, which an overlay refuses
}

// Image is what a machine can run from: either layers or a disk.
type Image struct {
	Digest string          `json:"digest"`           // of its source: an OCI manifest, a tarball or a raw disk
	Layers []string        `json:"layers,omitempty"` // digests as given to Pull.Layer, the topmost first
	Disk   string          `json:"disk,omitempty"`   // digest as given to Pull.Disk
	Config json.RawMessage `json:"config,omitempty"` // the OCI image configuration, if it has one
}

// Trees returns the directories of the layers of an image, the topmost first.
func (s Store) Trees(image Image) []string {
	var trees []string
	for _, digest := range image.Layers {
		trees = append(trees, s.payload(item{layers, digest}))
	}
	return trees
}

// DiskFile returns the path of the disk of an image that has one.
func (s Store) DiskFile(image Image) string {
	return s.payload(item{disks, image.Disk})
}

// kind is a folder of the store and what an item in it holds.
type kind struct{ folder, payload string }

var (
	layers = kind{"layers", "tree"}
	disks  = kind{"disks", "disk.raw"}
)

// item is a layer or a disk.
type item struct {
	kind
	digest string
}

// items are those of an image, each once.
func (image Image) items() []item {
	var all []item
	for _, digest := range image.Layers {
		all = append(all, item{layers, digest})
	}
	if image.Disk != "" {
		all = append(all, item{disks, image.Disk})
	}
	slices.SortFunc(all, func(a, b item) int { return strings.Compare(a.digest, b.digest) })
	return slices.Compact(all)
}

// check says what makes an image useless, or unsafe to make paths of.
func (image Image) check() error {
	if (len(image.Layers) == 0) == (image.Disk == "") {
		return errors.New("an image has either layers or a disk")
	}
	for _, it := range image.items() {
		if err := checkDigest(it.digest); err != nil {
			return err
		}
	}
	return checkDigest(image.Digest)
}

var (
	digestPattern  = regexp.MustCompile(`^sha256:[0-9a-f]{64}$`)
	machinePattern = regexp.MustCompile(`^[a-zA-Z0-9-]{1,64}$`) // 64: HOST_NAME_MAX
)

func checkDigest(digest string) error {
	if !digestPattern.MatchString(digest) {
		return fmt.Errorf("digest %q is not sha256: and 64 hexadecimal digits in lower case", digest)
	}
	return nil
}

func checkMachine(name string) error {
	if !machinePattern.MatchString(name) {
		return fmt.Errorf("machine name %q has other characters than letters, digits and -, or not 1 to 64 of them", name)
	}
	return nil
}

// fileName is a digest as part of a path: a colon separates the layers in the
// options of overlayfs.
func fileName(digest string) string { return strings.Replace(digest, ":", "-", 1) }

// digestOf is the reverse of fileName.
func digestOf(name string) string { return strings.Replace(name, "-", ":", 1) }

func (s Store) path(it item) string { return filepath.Join(s.Dir, it.folder, fileName(it.digest)) }

func (s Store) payload(it item) string { return filepath.Join(s.path(it), it.kind.payload) }

// workPath is where an item that comes from an origin is written.
func (s Store) workPath(it item, origin string) string {
	sum := sha256.Sum256([]byte(origin))
	return filepath.Join(s.tmp(), it.folder+"."+fileName(it.digest)+"."+hex.EncodeToString(sum[:8]))
}

func (s Store) tmp() string { return filepath.Join(s.Dir, "tmp") }

func (s Store) images() string { return filepath.Join(s.Dir, "images") }

func (s Store) imagePath(digest string) string {
	return filepath.Join(s.images(), fileName(digest)+".json")
}

func (s Store) refs() string { return filepath.Join(s.Dir, "refs") }

func (s Store) refPath(machine string) string { return filepath.Join(s.refs(), machine) }

func (s Store) names() string { return filepath.Join(s.Dir, "names") }
