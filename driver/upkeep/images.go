package upkeep

import (
	"context"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/sys/unix"

	"nomad-driver-nspawn/driver/operator"
	"nomad-driver-nspawn/nspawn/image/store"
)

// maxPause is the longest time between two collections. The store may have grown beyond
// its maximum in the meantime.
const maxPause = 5 * time.Minute

// Images removes images that no task uses.
type Images struct {
	Store  store.Store
	Config operator.ImageGC
	Logger hclog.Logger
}

// Collect removes each image when it is due, until ctx ends. An image becomes due as time
// passes, which no signal reports.
func (i Images) Collect(ctx context.Context) {
	if !i.Config.Enabled {
		return
	}
	for {
		next, err := i.Store.NextUnused(ctx, i.Config.Options().UnusedFor)
		if err != nil && ctx.Err() == nil {
			i.Logger.Warn("look for images that no task uses", "error", err)
		}
		select {
		case <-time.After(pause(i.Config, time.Now(), next)):
		case <-ctx.Done():
			return
		}
		i.CollectOnce(ctx)
	}
}

// CollectOnce removes the images that are due now.
func (i Images) CollectOnce(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	options := i.Config.Options()
	options.MaxBytes = i.MaxBytes()
	removed, err := i.Store.Collect(ctx, options)
	for _, usage := range removed {
		i.Logger.Info("removed an image that no task uses", "image", usage.Digest, "names", strings.Join(usage.Names, " "))
	}
	if err != nil && ctx.Err() == nil {
		i.Logger.Warn("remove images that no task uses", "error", err)
	}
}

// MaxBytes returns the maximum size of the store, which pulls respect, too: half of its
// file system, unless the operator has set another one. It returns 0, no maximum, if the
// store does not exist yet.
func (i Images) MaxBytes() int64 {
	if size := i.Config.Options().MaxBytes; size > 0 {
		return size
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(i.Store.Dir, &fs); err != nil {
		return 0
	}
	return int64(fs.Blocks) * fs.Bsize / 2
}

// pause returns how long to wait at now. next is when the first image will be due, or zero
// if every image is in use. The pause is at least a twentieth of unused_for, so that
// several images are removed at once, and none stays more than a tenth too long.
func pause(config operator.ImageGC, now, next time.Time) time.Duration {
	unusedFor := config.Options().UnusedFor
	pause := unusedFor // no image can be due earlier
	if !next.IsZero() {
		pause = next.Sub(now)
	}
	return min(max(pause, unusedFor/20), maxPause)
}
