package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"nomad-driver-nspawn/e2e/host"
)

// again is the path of the second copy of the Debian image in the big tree.
const again = "srv/again"

// makeBigTree makes a tree of about 300 MB in 15000 files: two copies of the Debian image,
// and the payload.
func makeBigTree(ctx context.Context, dir, payload string) error {
	debian, err := host.DebianImage(ctx)
	if err != nil {
		return err
	}
	for _, args := range [][]string{
		{"cp", "--archive", debian, dir},
		{"cp", "--archive", debian, filepath.Join(dir, again)},
		{"cp", payload, filepath.Join(dir, "usr/bin/payload")},
	} {
		if err := runTool(ctx, args...); err != nil {
			return fmt.Errorf("make the big tree: %w", err)
		}
	}
	return nil
}

// makeLayout makes an OCI layout from a tree, with two layers and the tag "1".
func makeLayout(ctx context.Context, dir, tree string) error {
	scratch, err := os.MkdirTemp(filepath.Dir(dir), "layers-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(scratch)
	config, err := empty.Image.ConfigFile()
	if err != nil {
		return err
	}
	config.OS, config.Architecture = "linux", runtime.GOARCH
	image, err := mutate.ConfigFile(empty.Image, config)
	if err != nil {
		return err
	}
	image = mutate.ConfigMediaType(mutate.MediaType(image, types.OCIManifestSchema1), types.OCIConfigJSON)
	for i, content := range [][]string{{"--exclude=./" + again + "/*", "."}, {"./" + again}} {
		file := filepath.Join(scratch, strconv.Itoa(i)+".tar.gz")
		if err := runTool(ctx, append([]string{"tar", "--directory", tree, "--create", "--gzip", "--file", file}, content...)...); err != nil {
			return fmt.Errorf("make a layer: %w", err)
		}
		layer, err := tarball.LayerFromFile(file, tarball.WithMediaType(types.OCILayer))
		if err != nil {
			return fmt.Errorf("make a layer: %w", err)
		}
		if image, err = mutate.AppendLayers(image, layer); err != nil {
			return fmt.Errorf("add a layer: %w", err)
		}
	}
	index, err := layout.Write(dir, empty.Index)
	if err != nil {
		return fmt.Errorf("make OCI layout: %w", err)
	}
	err = index.AppendImage(image,
		layout.WithAnnotations(map[string]string{"org.opencontainers.image.ref.name": "1"}),
		layout.WithPlatform(v1.Platform{OS: "linux", Architecture: runtime.GOARCH}))
	if err != nil {
		return fmt.Errorf("write image to OCI layout: %w", err)
	}
	return nil
}

func runTool(ctx context.Context, args ...string) error {
	if output, err := exec.CommandContext(ctx, args[0], args[1:]...).CombinedOutput(); err != nil {
		return fmt.Errorf("run %s: %w: %s", args[0], err, output)
	}
	return nil
}
