package store

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"
)

// Usage tells of an image in the store and who uses it.
type Usage struct {
	Digest   string
	Names    []string  // that were last resolved to it, sorted
	Bytes    int64     // on disk, with the layers that it shares with others
	Machines []string  // that use it, sorted
	LastUse  time.Time // when it was last added, acquired or released
	Err      error     // why it can not be used, or nil
}

// Listing is what a store has.
type Listing struct {
	Images []Usage // sorted by digest
	Bytes  int64   // on disk, of all layers and disks, each once
}

// List returns what the store has.
func (s Store) List(ctx context.Context) (Listing, error) {
	var inv inventory
	err := s.locked(ctx, func() (err error) {
		inv, err = s.inventory(ctx)
		return err
	})
	if err != nil {
		return Listing{}, fmt.Errorf("list images in %s: %w", s.Dir, err)
	}
	var list Listing
	for _, r := range inv.images {
		list.Images = append(list.Images, r.Usage)
	}
	slices.SortFunc(list.Images, func(a, b Usage) int { return cmp.Compare(a.Digest, b.Digest) })
	for _, used := range inv.items {
		list.Bytes += used.bytes
	}
	return list, nil
}
