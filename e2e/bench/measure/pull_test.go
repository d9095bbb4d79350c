package main

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/shoenig/test/must"

	"nomad-driver-nspawn/nspawn/image/oci"
)

func TestRegistryCountsLayersThatAreFetched(t *testing.T) {
	dir := t.TempDir()
	index, err := layout.Write(dir, empty.Index)
	must.NoError(t, err)
	content, err := random.Image(100, 2)
	must.NoError(t, err)
	must.NoError(t, index.AppendImage(content))
	r, err := serveLayout(dir)
	must.NoError(t, err)
	t.Cleanup(r.close)
	must.EqOp(t, 2, r.layers)

	reference, err := oci.ParseReference(registryHost + "/bench:1")
	must.NoError(t, err)
	client := oci.Client{PlainHTTP: []string{registryHost}}
	found, err := client.Resolve(t.Context(), reference, nil, false)
	must.NoError(t, err)
	must.EqOp(t, 0, r.fetched.Load())
	for _, l := range found.Layers {
		blob, err := l.Open(t.Context())
		must.NoError(t, err)
		must.NoError(t, blob.Close())
	}
	must.EqOp(t, 2, r.fetched.Load())
}

func TestAtOnceIsAsSlowAsTheSlowest(t *testing.T) {
	t.Parallel()
	var calls atomic.Int64
	s, err := atOnce(t.Context(), 3, func(context.Context) (sample, error) {
		n := time.Duration(calls.Add(1))
		return sample{call: n, first: 10 - n}, nil
	})
	must.NoError(t, err)
	must.EqOp(t, sample{call: 3, first: 9}, s)
	broken := errors.New("broken")
	_, err = atOnce(t.Context(), 2, func(context.Context) (sample, error) { return sample{}, broken })
	must.ErrorIs(t, err, broken)
}
