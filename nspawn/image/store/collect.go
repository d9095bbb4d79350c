package store

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// CollectOptions select what to remove. The zero value removes only what has no use:
// damaged images, names of images that are gone, and layers and disks without an image.
type CollectOptions struct {
	UnusedFor time.Duration // remove images that no machine has used for longer than this; 0: none
	MaxBytes  int64         // then remove the least recently used images until the store is no larger; 0: no limit
	DryRun    bool          // only return what would be removed
}

// Collect removes images that no machine uses, and returns them. It keeps what a Pull
// holds. The store may remain larger than MaxBytes if more than that is in use.
//
// If a machine uses an image that cannot be read, Collect removes nothing, because any
// layer may belong to that image. This state ends when the image is added again, or the
// machine is released.
func (s Store) Collect(ctx context.Context, options CollectOptions) (removed []Usage, err error) {
	err = s.locked(ctx, func() error {
		inv, err := s.inventory(ctx)
		if err != nil {
			return err
		}
		removed, err = s.collect(inv, options)
		return err
	})
	if err == nil && !options.DryRun {
		err = s.sweep(ctx)
	}
	if err != nil {
		return removed, fmt.Errorf("collect images in %s: %w", s.Dir, err)
	}
	return removed, nil
}

// NextUnused returns the time at which the first of the unused images will have been
// unused for longer than unusedFor. It is zero if there is none.
func (s Store) NextUnused(ctx context.Context, unusedFor time.Duration) (next time.Time, err error) {
	err = s.locked(ctx, func() error {
		inv, err := s.inventory(ctx)
		if err != nil {
			return err
		}
		for _, r := range inv.leastRecentlyUsed() {
			if !r.pulled && len(r.Machines) == 0 {
				next = r.LastUse.Add(unusedFor)
				return nil
			}
		}
		return nil
	})
	if err != nil {
		return time.Time{}, fmt.Errorf("look for unused images in %s: %w", s.Dir, err)
	}
	return next, nil
}

func (s Store) collect(inv inventory, options CollectOptions) (removed []Usage, err error) {
	if err := inv.refuseUnknown(); err != nil {
		return nil, err
	}
	victims, orphans := inv.choose(options, time.Now())
	for _, victim := range victims {
		if !options.DryRun {
			if err := os.Remove(s.imagePath(victim.Digest)); err != nil {
				return removed, err
			}
			delete(inv.images, victim.Digest)
		}
		removed = append(removed, victim.Usage)
	}
	if options.DryRun {
		return removed, nil
	}
	return removed, s.removeUnreferenced(inv, orphans)
}

// removeUnreferenced removes names of images that are gone, and moves layers and disks
// without an image to tmp/.
func (s Store) removeUnreferenced(inv inventory, orphans []item) error {
	for file, found := range inv.names {
		if inv.images[found.Image] != nil {
			continue
		}
		if err := os.Remove(filepath.Join(s.names(), file)); err != nil {
			return err
		}
	}
	for _, it := range orphans {
		if err := os.Rename(s.path(it), s.tmpName()); err != nil {
			return err
		}
	}
	return nil
}

func (inv inventory) refuseUnknown() error {
	for _, r := range inv.images {
		if len(r.Machines) > 0 && r.image.Digest == "" {
			return fmt.Errorf("machine %s uses image %s, about which nothing is known: %w", r.Machines[0], r.Digest, r.Err)
		}
	}
	return nil
}

// choose decides what to remove: images, and the layers and disks that then have no
// image.
func (inv inventory) choose(options CollectOptions, now time.Time) (victims []*record, orphans []item) {
	users, total := inv.users()
	for _, r := range inv.leastRecentlyUsed() {
		old := options.UnusedFor > 0 && now.Sub(r.LastUse) > options.UnusedFor
		tooLarge := options.MaxBytes > 0 && total > options.MaxBytes
		inUse := r.pulled || len(r.Machines) > 0
		if inUse || r.Err == nil && !old && !tooLarge {
			continue
		}
		victims = append(victims, r)
		for _, it := range r.image.items() {
			users[it]--
			if users[it] == 0 {
				total -= inv.items[it].bytes
			}
		}
	}
	for it := range inv.items {
		if users[it] == 0 {
			orphans = append(orphans, it)
		}
	}
	return victims, orphans
}

// users counts the images and pulls that use each item, and the bytes of all items in
// use.
func (inv inventory) users() (users map[item]int, total int64) {
	users = map[item]int{}
	for _, r := range inv.images {
		for _, it := range r.image.items() {
			users[it]++
		}
	}
	for it, used := range inv.items {
		if used.pulled {
			users[it]++
		}
		if users[it] > 0 {
			total += used.bytes
		}
	}
	return users, total
}

func (inv inventory) leastRecentlyUsed() []*record {
	return slices.SortedFunc(maps.Values(inv.images), func(a, b *record) int {
		return cmp.Or(a.LastUse.Compare(b.LastUse), cmp.Compare(a.Digest, b.Digest))
	})
}
