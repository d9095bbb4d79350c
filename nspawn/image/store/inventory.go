package store

import (
	"cmp"
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
)

// inventory is the state of a store.
type inventory struct {
	images map[string]*record // by digest
	items  map[item]itemUsage
	names  map[string]resolution // by file name; zero if damaged
}

// record describes an image. Fields that are not known are empty.
type record struct {
	Usage
	image  Image
	pulled bool // a Pull holds it
}

// itemUsage describes a layer or a disk.
type itemUsage struct {
	bytes  int64
	pulled bool
}

// inventory reads the state of the store. The caller holds the lock of the store.
func (s Store) inventory(ctx context.Context) (inventory, error) {
	inv := inventory{images: map[string]*record{}, items: map[item]itemUsage{}, names: map[string]resolution{}}
	for _, read := range []func(context.Context, inventory) error{s.readItems, s.readImages, s.readNames, s.readRefs} {
		if err := read(ctx, inv); err != nil {
			return inventory{}, err
		}
	}
	for _, r := range inv.images {
		for _, it := range r.image.items() {
			r.Bytes += inv.items[it].bytes
		}
	}
	return inv, nil
}

func (s Store) readItems(ctx context.Context, inv inventory) error {
	return errors.Join(s.readKind(ctx, inv, layers), s.readKind(ctx, inv, disks))
}

func (s Store) readKind(ctx context.Context, inv inventory, kind kind) error {
	files, err := list(filepath.Join(s.Dir, kind.folder))
	if err != nil {
		return err
	}
	for _, file := range files {
		it := item{kind, digestOf(file)}
		if checkDigest(it.digest) != nil {
			continue // not ours
		}
		bytes, err := readSize(s.path(it))
		if err != nil {
			return err
		}
		pulled, err := inUse(ctx, s.path(it))
		if err != nil {
			return err
		}
		inv.items[it] = itemUsage{bytes, pulled}
	}
	return nil
}

func (s Store) readImages(ctx context.Context, inv inventory) error {
	files, err := list(s.images())
	if err != nil {
		return err
	}
	for _, file := range files {
		digest, ok := imageOf(file)
		if !ok {
			continue // not ours
		}
		info, err := os.Stat(s.imagePath(digest))
		if err != nil {
			return err
		}
		image, broken := s.image(digest)
		if broken != nil && !errors.Is(broken, ErrNotFound) {
			return broken
		}
		pulled, err := inUse(ctx, s.imagePath(digest))
		if err != nil {
			return err
		}
		inv.images[digest] = &record{Usage{Digest: digest, LastUse: info.ModTime(), Err: broken}, image, pulled}
	}
	return nil
}

func (s Store) readNames(_ context.Context, inv inventory) error {
	files, err := list(s.names())
	if err != nil {
		return err
	}
	for _, file := range files {
		found, err := readName(filepath.Join(s.names(), file))
		if err != nil && !errors.Is(err, ErrNotFound) {
			return err
		}
		inv.names[file] = found
		if r := inv.images[found.Image]; r != nil {
			r.Names = append(r.Names, found.Name)
		}
	}
	for _, r := range inv.images {
		slices.Sort(r.Names)
	}
	return nil
}

func (s Store) readRefs(_ context.Context, inv inventory) error {
	machines, err := list(s.refs()) // sorted
	if err != nil {
		return err
	}
	for _, machine := range machines {
		digest, err := s.referred(machine)
		r := inv.images[digest]
		if r == nil {
			r = &record{Usage: Usage{Digest: digest, Err: cmp.Or(err, ErrNotFound)}}
			inv.images[digest] = r
		}
		r.Machines = append(r.Machines, machine)
	}
	return nil
}

// list returns the names in a directory, sorted.
func list(dir string) (names []string, err error) {
	entries, err := os.ReadDir(dir)
	for _, entry := range entries {
		names = append(names, entry.Name())
	}
	return names, err
}
