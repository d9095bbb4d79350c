package driver

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/shoenig/test/must"

	"nomad-driver-nspawn/e2e/host/hosttest"
)

// pushLayers pushes an image of exactly these layers.
func (r *testRegistry) pushLayers(t *testing.T, image string, config v1.Config, archives ...[]byte) string {
	var layers []v1.Layer
	for _, archive := range archives {
		layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(archive)), nil })
		must.NoError(t, err)
		layers = append(layers, layer)
	}
	built, err := mutate.AppendLayers(empty.Image, layers...)
	must.NoError(t, err)
	built, err = mutate.Config(built, config)
	must.NoError(t, err)
	reference, err := name.ParseReference(r.address+"/"+image, name.Insecure)
	must.NoError(t, err)
	must.NoError(t, remote.Write(reference, built))
	return r.address + "/" + image
}

// staticLayer returns a layer with a static busybox, which selects its command by its
// name, and nothing else: no /etc, /tmp, /usr, shell or passwd.
func staticLayer(t *testing.T, path string) []byte {
	content, err := os.ReadFile(filepath.Join(hosttest.Busybox, "usr/bin/busybox"))
	must.NoError(t, err)
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	must.NoError(t, w.WriteHeader(&tar.Header{Name: path, Mode: 0o755, Size: int64(len(content))}))
	_, err = w.Write(content)
	must.NoError(t, err)
	must.NoError(t, w.Close())
	return buf.Bytes()
}

// TestHostShapes runs images of many forms that are found in practice.
func TestHostShapes(t *testing.T) {
	cleanStore(t)
	registry := newRegistry(t)
	plain := staticLayer(t, "busybox")
	data := tarOf(t, map[string]string{"data/seed": "seed\n"})
	many := [][]byte{plain}
	for i := range 126 {
		many = append(many, tarOf(t, map[string]string{fmt.Sprintf("layer/%d", i): ""}))
	}
	volumes := v1.Config{Volumes: map[string]struct{}{"/data": {}, "/missing/one": {}}}
	script := func(text, more string) string {
		return fmt.Sprintf("command = \"/busybox\"\nargs = [\"sh\", \"-c\", %q]\n%s", text, more)
	}
	for name, c := range map[string]struct {
		config v1.Config
		layers [][]byte
		job    string
		want   string
	}{
		"static":            {v1.Config{Entrypoint: []string{"/busybox", "echo", "runs"}}, [][]byte{plain}, "", "runs\n"},
		"static, read-only": {v1.Config{Entrypoint: []string{"/busybox", "echo", "runs"}}, [][]byte{plain}, "read_only = true\n", "runs\n"},
		"127 layers":        {v1.Config{}, many, script("/busybox ls /layer | /busybox wc -l", ""), "126\n"},
		"volumes": {
			volumes,
			[][]byte{plain, data},
			script("/busybox cat /data/seed; echo more >/data/x; echo more >/missing/one/x; /busybox cat /data/x", ""), "seed\nmore\n",
		},
		"volumes, read-only": {
			volumes,
			[][]byte{plain, data},
			script("/busybox cat /data/seed; echo more >/data/x; echo more >/missing/one/x; /busybox cat /data/x; echo x >/x || echo ro", "read_only = true"), "seed\nmore\nro\n",
		},
		"empty entrypoint": {v1.Config{Entrypoint: []string{"/gone"}, Cmd: []string{"gone"}}, [][]byte{plain}, "entrypoint = []\n" + script("echo mine", ""), "mine\n"},
	} {
		t.Run(name, func(t *testing.T) {
			image := registry.pushLayers(t, "shape:1", c.config, c.layers...)
			task, code := run(t, newHarness(t, registry.policy()), pulled(image, c.job+"\npull_policy = \"always\"\n"))
			awaitLog(t, task, "stdout", c.want)
			must.Zero(t, code)
		})
	}
}
