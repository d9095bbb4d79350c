package upkeep

import (
	"context"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"

	"nomad-driver-nspawn/driver/job"
	"nomad-driver-nspawn/nspawn/image/store"
)

// collectPeriod is the time between two collections. Collecting nothing costs a
// look at some files.
const collectPeriod = 5 * time.Minute

// CollectImages removes images that no task uses, once in each period until ctx
// ends. An image becomes removable because time passes, so no signal tells.
func CollectImages(ctx context.Context, images store.Store, config job.ImageGC, logger hclog.Logger) {
	if !config.Enabled {
		return
	}
	for {
		select {
		case <-time.After(collectPeriod):
		case <-ctx.Done():
			return
		}
		removed, err := collectOnce(ctx, images, config)
		for _, usage := range removed {
			logger.Info("removed an image that no task uses", "image", usage.Digest, "names", strings.Join(usage.Names, " "))
		}
		if err != nil && ctx.Err() == nil {
			logger.Warn("remove images that no task uses", "error", err)
		}
	}
}

func collectOnce(ctx context.Context, images store.Store, config job.ImageGC) ([]store.Usage, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	return images.Collect(ctx, config.Options())
}
