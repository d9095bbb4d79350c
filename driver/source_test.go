package driver

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/hashicorp/nomad/plugins/drivers"
	"github.com/shoenig/test/must"

	"nomad-driver-nspawn/driver/operator"
	"nomad-driver-nspawn/nspawn/image"
)

func sourceOf(t *testing.T, name string, cfg *drivers.TaskConfig) (image.Source, error) {
	policy := operator.Config{}.Policy("default")
	source, err := parseTask(t, fmt.Sprintf("image = %q", name)).Source(policy)
	if err != nil {
		return source, err
	}
	return findSource(policy, source, cfg)
}

// TestFindSource checks that what is read is what was checked: a name with a colon is not
// split again.
func TestFindSource(t *testing.T) {
	cfg := &drivers.TaskConfig{Name: "web", AllocDir: t.TempDir()}
	local := cfg.TaskDir().LocalDir
	for _, dir := range []string{local, filepath.Join(cfg.TaskDir().Dir, "private")} {
		must.NoError(t, os.MkdirAll(dir, 0o755))
	}
	must.NoError(t, os.WriteFile(filepath.Join(local, "x:v1"), nil, 0o644))
	must.NoError(t, os.Symlink("/etc/passwd", filepath.Join(local, "x")))
	must.NoError(t, os.Symlink("x:v1", filepath.Join(local, "link")))
	dataDir := filepath.Join(t.TempDir(), "data") // an operator may have moved Nomad's directory, and linked it
	must.NoError(t, os.Symlink(cfg.AllocDir, dataDir))
	linked := &drivers.TaskConfig{Name: cfg.Name, AllocDir: dataDir}
	source, err := sourceOf(t, "oci-archive:local/link:2", cfg)
	must.NoError(t, err)
	must.Eq(t, filepath.Join(local, "x:v1"), source.Reference.Path)
	must.Eq(t, "2", source.Reference.Tag)
	must.NotEq(t, "", source.Version)

	for image, want := range map[string]string{
		"oci-archive:local/x":        "is not in the task's directory",
		"oci-archive:../../x":        "",
		"oci:private":                "in private",
		"docker-archive:/etc/passwd": "image_paths",
		"oci-archive:local/missing":  "find local/missing on this client",
	} {
		for _, cfg := range []*drivers.TaskConfig{cfg, linked} {
			_, err := sourceOf(t, image, cfg)
			must.ErrorContains(t, err, want, must.Sprint(image))
		}
	}
}
