// Package store keeps unpacked images on disk, by digest. It knows nothing of registries
// and HTTP: callers pass functions that fill a directory or a file.
//
// There is no daemon and no database, only directories, rename and flock. So any number
// of processes may share a store, and any of them may be killed at any point:
//
//	layers/sha256-HEX/tree        an unpacked OCI layer or tarball, beside its size
//	disks/sha256-HEX/disk.raw     a raw disk, beside its size
//	images/sha256-HEX.json        an Image; its modification time is the time of last use
//	names/HASH.json               the image to which a name, say alpine:3, was last resolved
//	refs/MACHINE                  symbolic link to the image that a machine uses
//	tmp/                          files that are being written or removed
//
// These rules make it safe:
//
//   - A file with its final name is complete. A layer is written in tmp/, synced, and
//     renamed; to be removed, it is renamed back into tmp/.
//   - Files outside of tmp/ are changed only under the lock of the store, a flock on its
//     directory, which is held for a few file system calls.
//   - A directory in tmp/ belongs to the process that holds its exclusive flock. Its name
//     is derived from the digest and from the origin of the item, so only pulls of the
//     same layer from the same origin wait for that lock. A directory without a holder is
//     garbage that any process may remove.
//   - A Pull holds a shared flock on each layer, disk and image that it has obtained, which
//     protects them from Collect until the Pull is closed or its process dies.
//
// Locks end with their process and with the boot; names and references do not.
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

// ErrNotFound means that an image is not in the store, or that it is damaged, which the
// text of the error says. Either way it must be fetched.
var ErrNotFound = errors.New("not in the store")

// Store is a directory of images on a local file system.
type Store struct {
	Dir string // absolute, without symbolic links, which an overlay refuses; created with mode 0700 if missing
}

// Image is an image from which a machine can run. It has either layers or a disk.
type Image struct {
	Digest string          `json:"digest"`           // digest of its source: an OCI manifest, a tarball or a raw disk
	Layers []string        `json:"layers,omitempty"` // digests that were passed to Pull.Layer, the topmost first
	Disk   string          `json:"disk,omitempty"`   // digest that was passed to Pull.Disk
	Config json.RawMessage `json:"config,omitempty"` // OCI image configuration, if there is one
}

// Trees returns the directories of an image's layers, the topmost first.
func (s Store) Trees(image Image) []string {
	var trees []string
	for _, digest := range image.Layers {
		trees = append(trees, s.payload(item{layers, digest}))
	}
	return trees
}

// DiskFile returns the path of an image's disk.
func (s Store) DiskFile(image Image) string {
	return s.payload(item{disks, image.Disk})
}

// kind is a folder of the store, with the name of the payload in each of its items.
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

// items returns the items of an image, each once.
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

// check returns an error if an image is useless, or if its digests cannot safely be used
// in paths.
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
	machinePattern = regexp.MustCompile(`^[a-zA-Z0-9-]{1,64}$`) // 64 is HOST_NAME_MAX
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

// fileName returns a digest as a file name. It has no colon, because a colon separates
// the layers in the options of overlayfs.
func fileName(digest string) string { return strings.Replace(digest, ":", "-", 1) }

// digestOf is the inverse of fileName.
func digestOf(name string) string { return strings.Replace(name, "-", ":", 1) }

func (s Store) path(it item) string { return filepath.Join(s.Dir, it.folder, fileName(it.digest)) }

func (s Store) payload(it item) string { return filepath.Join(s.path(it), it.kind.payload) }

// workPath returns the path of the workspace for an item from an origin.
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
