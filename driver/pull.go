package driver

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/hashicorp/nomad/plugins/drivers"
	"golang.org/x/sys/unix"

	"nomad-driver-nspawn/driver/job"
	"nomad-driver-nspawn/driver/operator"
	"nomad-driver-nspawn/driver/upkeep"
	"nomad-driver-nspawn/nspawn/dirs"
	"nomad-driver-nspawn/nspawn/image"
	"nomad-driver-nspawn/nspawn/image/download"
	"nomad-driver-nspawn/nspawn/image/oci"
	"nomad-driver-nspawn/nspawn/image/store"
)

// imageStore is the store of images.
var imageStore = store.Store{Dir: dirs.Default.Images()}

// newPuller returns a puller with the operator's settings.
func newPuller(config operator.Config) image.Puller {
	return image.Puller{
		Store: imageStore,
		Registry: oci.Client{
			Mirrors:      config.Registry.Mirrors,
			PlainHTTP:    config.Registry.PlainHTTP,
			CAFile:       config.Registry.CAFile,
			DockerConfig: config.Registry.DockerConfig,
			UserAgent:    "nomad-driver-nspawn/" + Version,
		},
		Download: download.Client{CAFile: config.Registry.CAFile},
		MaxBytes: upkeep.Images{Store: imageStore, Config: config.ImageGC}.MaxBytes(),
	}
}

// pull pulls the task's image into the store. Errors of the network are marked as
// temporary.
func (d *Driver) pull(config operator.Config, task job.TaskConfig, cfg *drivers.TaskConfig, source image.Source) (found foundImage, err error) {
	timeout, inactivity := config.PullTimeouts()
	ctx, cancel := context.WithTimeout(d.ctx, timeout)
	defer cancel()
	request := image.Request{
		Source:     source,
		Policy:     task.Pull(source),
		AuthSoft:   task.AuthSoftFail,
		Inactivity: inactivity,
	}
	if task.Auth != nil {
		request.Auth = &oci.Auth{Username: task.Auth.Username, Password: task.Auth.Password}
	}
	report := pullReport{emit: func(text string) { d.emit(cfg, text) }, source: source, began: time.Now()}
	request.Progress = report.progress
	stored, release, err := newPuller(config).Pull(ctx, request)
	if err != nil {
		err = fmt.Errorf("image: %w", err)
		if errors.Is(err, unix.ENOSPC) && config.ImageGC.Enabled {
			upkeep.Images{Store: imageStore, Config: config.ImageGC, Logger: d.logger}.CollectOnce(d.ctx) // for the next attempt
		}
		if isTemporary(err) || ctx.Err() != nil {
			return found, recoverable(err)
		}
		return found, err
	}
	report.end()
	found.StoreDigest, found.Release = stored.Digest, release
	if found.Config, err = image.Config(stored); err != nil {
		release()
		return foundImage{}, err
	}
	return found, nil
}

// isTemporary reports whether an error is not the job's fault.
func isTemporary(err error) bool {
	return image.Temporary(err) || errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) ||
		errors.Is(err, unix.EIO) || errors.Is(err, unix.EROFS)
}

// reportPeriod is the time between two events of a pull. Nomad keeps ten events of a task.
const reportPeriod = time.Minute

// pullReport reports the progress of a pull to the task's user, if something has to be
// downloaded at all.
type pullReport struct {
	emit        func(string)
	source      image.Source
	began, told time.Time
}

func (r *pullReport) progress(done, total int64) {
	now := time.Now()
	switch {
	case r.told.IsZero() && total > 0:
		r.emit(fmt.Sprintf("Pulling image %s, %s", r.source, humanize.Bytes(uint64(total))))
	case r.told.IsZero():
		r.emit(fmt.Sprintf("Pulling image %s", r.source))
	case now.Sub(r.told) < reportPeriod:
		return
	case total > 0:
		r.emit(fmt.Sprintf("Pulling image %s: %s of %s, %d %%", r.source, humanize.Bytes(uint64(done)), humanize.Bytes(uint64(total)), 100*done/total))
	default:
		r.emit(fmt.Sprintf("Pulling image %s: %s", r.source, humanize.Bytes(uint64(done))))
	}
	r.told = now
}

func (r *pullReport) end() {
	if !r.told.IsZero() {
		r.emit(fmt.Sprintf("Pulled image %s in %s", r.source, time.Since(r.began).Round(100*time.Millisecond)))
	}
}
