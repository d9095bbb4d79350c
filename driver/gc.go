package driver

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/hashicorp/nomad/plugins/shared/hclspec"

	"nomad-driver-nspawn/nspawn/image/store"
)

// ImageGC says which images of the store are removed: those that no task uses.
type ImageGC struct {
	Enabled   bool   `codec:"enabled"`
	UnusedFor string `codec:"unused_for"`
	MaxSize   string `codec:"max_size"`
}

var imageGCSpec = hclspec.NewDefault(
	hclspec.NewBlock("image_gc", false, hclspec.NewObject(map[string]*hclspec.Spec{
		"enabled":    withDefault("enabled", "bool", "true"),
		"unused_for": withDefault("unused_for", "string", `"24h"`),
		"max_size":   hclspec.NewAttr("max_size", "string", false),
	})),
	hclspec.NewLiteral(`{ enabled = true, unused_for = "24h" }`),
)

func (c ImageGC) validate() error {
	if !c.Enabled {
		return nil
	}
	errs := []error{positive("image_gc.unused_for", c.UnusedFor)}
	if _, err := humanize.ParseBytes(c.MaxSize); c.MaxSize != "" && err != nil {
		errs = append(errs, fmt.Errorf("image_gc.max_size: %q is not a size, as 20GB", c.MaxSize))
	}
	return errors.Join(errs...)
}

func (c ImageGC) options() store.CollectOptions {
	size, _ := humanize.ParseBytes(c.MaxSize) // validated
	return store.CollectOptions{UnusedFor: duration(c.UnusedFor), MaxBytes: int64(size)}
}

// gcPeriod is the time between two collections. Collecting nothing costs a look
// at some files.
const gcPeriod = 5 * time.Minute

// collectImages removes images that no task uses, period after period: what
// makes one removable is that time passes.
func (d *Driver) collectImages(ctx context.Context) {
	config := d.policy().ImageGC
	if !config.Enabled {
		return
	}
	for {
		select {
		case <-time.After(gcPeriod):
		case <-ctx.Done():
			return
		}
		removed, err := d.collectOnce(ctx, config)
		for _, usage := range removed {
			d.logger.Info("removed an image that no task uses", "image", usage.Digest, "names", strings.Join(usage.Names, " "))
		}
		if err != nil && ctx.Err() == nil {
			d.logger.Warn("remove images that no task uses", "error", err)
		}
	}
}

func (d *Driver) collectOnce(ctx context.Context, config ImageGC) ([]store.Usage, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	return imageStore.Collect(ctx, config.options())
}

// duration is a validated one.
func duration(text string) time.Duration {
	d, _ := time.ParseDuration(text)
	return d
}
