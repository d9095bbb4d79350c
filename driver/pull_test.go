package driver

import (
	"context"
	"strings"
	"testing"

	"github.com/hashicorp/nomad/plugins/drivers"
	"github.com/shoenig/test/must"

	"nomad-driver-nspawn/nspawn/image"
	"nomad-driver-nspawn/nspawn/image/oci"
	"nomad-driver-nspawn/nspawn/image/store"
)

// TestPullOfDamagedConfig checks that an image whose config cannot be read can still be
// collected.
func TestPullOfDamagedConfig(t *testing.T) {
	before := imageStore
	t.Cleanup(func() { imageStore = before })
	imageStore = store.Store{Dir: t.TempDir() + "/images"}
	reference, err := oci.ParseReference("example.org/app:1")
	must.NoError(t, err)
	source := image.Source{Reference: reference}
	digest := func(digit string) string { return "sha256:" + strings.Repeat(digit, 64) }
	pull := imageStore.Begin()
	_, err = pull.Layer(t.Context(), digest("a"), "here", func(context.Context, string) error { return nil })
	must.NoError(t, err)
	must.NoError(t, pull.Add(t.Context(), store.Image{Digest: digest("b"), Layers: []string{digest("a")}, Config: []byte(`[]`)}, source.Name()))
	pull.Close()

	d := &Driver{ctx: t.Context()}
	config := parseConfig(t, "")
	found, err := d.pull(config, parseTask(t, "image = \"example.org/app:1\"\npull_policy = \"never\""), &drivers.TaskConfig{}, source)
	must.ErrorContains(t, err, "read the config of image")
	must.Nil(t, found.Release)
	removed, err := imageStore.Collect(t.Context(), store.CollectOptions{UnusedFor: 1})
	must.NoError(t, err)
	must.SliceLen(t, 1, removed)
}
