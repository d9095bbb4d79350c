package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"golang.org/x/sync/errgroup"
)

const (
	registryHost = "127.0.0.1:5000"
	crowd        = 20

	// A pull takes seconds, so few are measured.
	pullWarmUp = 1
	pullRuns   = 3
)

// measurePulls starts tasks with an image that the client does not have: first one task,
// then many at once.
func measurePulls(ctx context.Context, p *plugin, opts options, r *report) error {
	registry, err := serveLayout(opts.layout)
	if err != nil {
		return err
	}
	defer registry.close()
	start := p.starter(map[string]any{"image": registryHost + "/bench:1"})
	var downloads []float64
	one := &way{name: "pull_one", run: func(ctx context.Context) (sample, error) {
		if err := forgetImages(ctx, opts.plugin); err != nil {
			return sample{}, err
		}
		return start(ctx)
	}}
	parallel := &way{name: "pull_parallel", run: func(ctx context.Context) (sample, error) {
		if err := forgetImages(ctx, opts.plugin); err != nil {
			return sample{}, err
		}
		registry.fetched.Store(0)
		last, err := atOnce(ctx, crowd, start)
		downloads = append(downloads, float64(registry.fetched.Load())/float64(registry.layers))
		return last, err
	}}
	if err := takeTurnsAfter(ctx, pullWarmUp, pullRuns, one, parallel); err != nil {
		return err
	}
	return errors.Join(
		r.add("pull_one", "ms", one.firsts...),
		r.add("pull_parallel", "ms", parallel.firsts...),
		r.add("pull_parallel_ratio", "x", ratios(parallel.firsts, one.firsts)...),
		r.add("pull_parallel_downloads", "downloads", downloads...),
	)
}

// forgetImages removes the images, so that the next pull downloads again.
func forgetImages(ctx context.Context, plugin string) error {
	if output, err := exec.CommandContext(ctx, plugin, "images", "prune").CombinedOutput(); err != nil {
		return fmt.Errorf("remove images: %w: %s", err, output)
	}
	return nil
}

// atOnce runs the same several times concurrently and returns the slowest sample.
func atOnce(ctx context.Context, times int, run func(context.Context) (sample, error)) (slowest sample, err error) {
	var mu sync.Mutex
	group, ctx := errgroup.WithContext(ctx)
	for range times {
		group.Go(func() error {
			s, err := run(ctx)
			mu.Lock()
			defer mu.Unlock()
			slowest = sample{call: max(slowest.call, s.call), first: max(slowest.first, s.first)}
			return err
		})
	}
	return slowest, group.Wait()
}

// registry serves one image. It counts how often a layer is fetched.
type registry struct {
	server  http.Server
	layers  int
	fetched atomic.Int64
}

// serveLayout serves the only image of an OCI layout, under any name and tag.
func serveLayout(dir string) (*registry, error) {
	index, err := layout.ImageIndexFromPath(dir)
	if err != nil {
		return nil, fmt.Errorf("read OCI layout: %w", err)
	}
	list, err := index.IndexManifest()
	if err != nil {
		return nil, fmt.Errorf("read OCI layout: %w", err)
	}
	if len(list.Manifests) != 1 {
		return nil, fmt.Errorf("read OCI layout: it has %d images, not one", len(list.Manifests))
	}
	image, err := index.Image(list.Manifests[0].Digest)
	if err != nil {
		return nil, fmt.Errorf("read image of OCI layout: %w", err)
	}
	manifest, err := image.Manifest()
	if err != nil {
		return nil, fmt.Errorf("read manifest of OCI layout: %w", err)
	}
	r := &registry{layers: len(manifest.Layers)}
	r.server.Handler = r.handler(dir, list.Manifests[0], manifest)
	listener, err := net.Listen("tcp", registryHost)
	if err != nil {
		return nil, fmt.Errorf("serve images: %w", err)
	}
	go r.server.Serve(listener)
	return r, nil
}

// handler implements the part of the OCI distribution specification that a pull needs.
func (r *registry) handler(dir string, image v1.Descriptor, manifest *v1.Manifest) http.Handler {
	isLayer := map[string]bool{}
	for _, layer := range manifest.Layers {
		isLayer[layer.Digest.String()] = true
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v2/", func(http.ResponseWriter, *http.Request) {})
	blob := func(w http.ResponseWriter, request *http.Request, digest string) {
		algorithm, hex, _ := strings.Cut(digest, ":")
		http.ServeFile(w, request, filepath.Join(dir, "blobs", algorithm, hex))
	}
	mux.HandleFunc("GET /v2/{name}/manifests/{reference}", func(w http.ResponseWriter, request *http.Request) {
		w.Header().Set("Content-Type", string(image.MediaType))
		w.Header().Set("Docker-Content-Digest", image.Digest.String())
		blob(w, request, image.Digest.String())
	})
	mux.HandleFunc("GET /v2/{name}/blobs/{digest}", func(w http.ResponseWriter, request *http.Request) {
		digest := request.PathValue("digest")
		if isLayer[digest] && request.Method == http.MethodGet {
			r.fetched.Add(1)
		}
		blob(w, request, digest)
	})
	return mux
}

func (r *registry) close() { _ = r.server.Close() }
