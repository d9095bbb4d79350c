package store

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"
)

// Usage describes an image in the store and its users.
type Usage struct {
	Digest   string
	Names    []string  // names that were last resolved to it, sorted
	Bytes    int64     // size on disk, including layers that it shares with others
	Machines []string  // machines that use it, sorted
	LastUse  time.Time // time at which it was last added, acquired or released
	Err      error     // reason why it cannot be used, or nil
}

// Listing is the content of a store.
type Listing struct {
	Images []Usage // sorted by digest
	Bytes  int64   // size on disk of all layers and disks, each counted once
}

// List returns the content of the store.
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
