package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"nomad-driver-nspawn/nspawn/image"
	"nomad-driver-nspawn/nspawn/image/oci"
	"nomad-driver-nspawn/nspawn/image/store"
)

// measureUnpack compares how the plugin and how Debian's tools unpack an image of an OCI
// layout.
func measureUnpack(ctx context.Context, opts options, r *report) error {
	pull := &way{name: "unpack_pull", run: inScratch(opts.unpack, func(ctx context.Context, scratch string) error {
		return pullLayout(ctx, opts.layout, scratch)
	})}
	umoci := &way{name: "unpack_umoci", run: inScratch(opts.unpack, func(ctx context.Context, scratch string) error {
		return umociUnpack(ctx, opts.layout, scratch)
	})}
	if err := takeTurnsAfter(ctx, pullWarmUp, pullRuns, pull, umoci); err != nil {
		return err
	}
	return errors.Join(
		r.add("unpack_pull", "ms", pull.calls...),
		r.add("unpack_umoci", "ms", umoci.calls...),
		r.add("unpack_ratio", "x", ratios(pull.calls, umoci.calls)...),
	)
}

// inScratch measures work in a directory of its own. Creating and removing the directory
// is not included.
func inScratch(dir string, work func(ctx context.Context, scratch string) error) func(context.Context) (sample, error) {
	return func(ctx context.Context) (s sample, err error) {
		scratch, err := os.MkdirTemp(dir, "unpack-")
		if err != nil {
			return sample{}, err
		}
		defer func() { err = errors.Join(err, os.RemoveAll(scratch)) }()
		return timed(func(ctx context.Context) error { return work(ctx, scratch) })(ctx)
	}
}

func pullLayout(ctx context.Context, layout, scratch string) error {
	reference, err := oci.ParseReference("oci:" + layout + ":1")
	if err != nil {
		return err
	}
	puller := image.Puller{Store: store.Store{Dir: filepath.Join(scratch, "store")}}
	_, release, err := puller.Pull(ctx, image.Request{Source: image.Source{Reference: reference}, Policy: image.Missing})
	if err != nil {
		return err
	}
	release()
	return nil
}

func umociUnpack(ctx context.Context, layout, scratch string) error {
	copied := filepath.Join(scratch, "layout") + ":1"
	for _, args := range [][]string{
		{"skopeo", "copy", "--quiet", "--insecure-policy", "oci:" + layout + ":1", "oci:" + copied},
		{"umoci", "unpack", "--image", copied, filepath.Join(scratch, "bundle")},
	} {
		if output, err := exec.CommandContext(ctx, args[0], args[1:]...).CombinedOutput(); err != nil {
			return fmt.Errorf("run %s: %w: %s", args[0], err, output)
		}
	}
	return nil
}
