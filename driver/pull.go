package driver

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/nomad/plugins/drivers"
	"golang.org/x/sys/unix"

	"nomad-driver-nspawn/nspawn"
	"nomad-driver-nspawn/nspawn/image"
	"nomad-driver-nspawn/nspawn/image/download"
	"nomad-driver-nspawn/nspawn/image/oci"
	"nomad-driver-nspawn/nspawn/image/store"
)

// imageStore is where images are kept.
var imageStore = store.Store{Dir: nspawn.DefaultDirs.Images()}

// puller is as the operator wants it.
func puller(policy Config) image.Puller {
	return image.Puller{
		Store: imageStore,
		Registry: oci.Client{
			Mirrors:      policy.Registry.Mirrors,
			PlainHTTP:    policy.Registry.PlainHTTP,
			CAFile:       policy.Registry.CAFile,
			DockerConfig: policy.Registry.DockerConfig,
			UserAgent:    "nomad-driver-nspawn/" + Version,
		},
		Download: download.Client{CAFile: policy.Registry.CAFile},
	}
}

// pull brings the task's image into the store. What comes of the network may be
// better the next time.
func (d *Driver) pull(policy Config, task TaskConfig, cfg *drivers.TaskConfig, source image.Source) (found foundImage, err error) {
	ctx, cancel := context.WithTimeout(d.ctx, duration(policy.ImagePullTimeout))
	defer cancel()
	request := image.Request{
		Source:     source,
		Policy:     task.pullPolicy(source),
		AuthSoft:   task.AuthSoftFail,
		Inactivity: duration(policy.PullActivityTimeout),
	}
	if task.Auth != nil {
		request.Auth = &oci.Auth{Username: task.Auth.Username, Password: task.Auth.Password}
	}
	report := pullReport{emit: func(text string) { d.emit(cfg, text) }, source: source, began: time.Now()}
	request.Progress = report.progress
	stored, release, err := puller(policy).Pull(ctx, request)
	if err != nil {
		err = fmt.Errorf("image: %w", err)
		if mayGetBetter(err) || ctx.Err() != nil {
			return found, recoverable(err)
		}
		return found, err
	}
	report.end()
	config, err := image.Config(stored)
	if err != nil {
		release()
		return found, err
	}
	return foundImage{Stored: stored.Digest, Config: config, Release: release}, nil
}

// mayGetBetter says whether an error is not the job's.
func mayGetBetter(err error) bool {
	return image.Temporary(err) || errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) ||
		errors.Is(err, unix.EIO) || errors.Is(err, unix.EROFS)
}

func (c TaskConfig) pullPolicy(source image.Source) image.Policy {
	switch {
	case c.PullPolicy != "":
		return image.Policy(c.PullPolicy)
	case c.ImageDownload != nil && c.ImageDownload.Force:
		return image.Always
	}
	return source.DefaultPolicy()
}

// reportPeriod is the time between two events of a pull. A task keeps ten.
const reportPeriod = time.Minute

// pullReport tells the task's user of a pull, if something has to be read at all.
type pullReport struct {
	emit        func(string)
	source      image.Source
	began, told time.Time
}

func (r *pullReport) progress(done, total int64) {
	now := time.Now()
	switch {
	case r.told.IsZero() && total > 0:
		r.emit(fmt.Sprintf("Pulling image %s, %s", r.source, megabytes(total)))
	case r.told.IsZero():
		r.emit(fmt.Sprintf("Pulling image %s", r.source))
	case now.Sub(r.told) < reportPeriod:
		return
	case total > 0:
		r.emit(fmt.Sprintf("Pulling image %s: %s of %s, %d %%", r.source, megabytes(done), megabytes(total), 100*done/total))
	default:
		r.emit(fmt.Sprintf("Pulling image %s: %s", r.source, megabytes(done)))
	}
	r.told = now
}

func (r *pullReport) end() {
	if !r.told.IsZero() {
		r.emit(fmt.Sprintf("Pulled image %s in %s", r.source, time.Since(r.began).Round(100*time.Millisecond)))
	}
}

func megabytes(n int64) string { return fmt.Sprintf("%.1f MB", float64(n)/1e6) }
