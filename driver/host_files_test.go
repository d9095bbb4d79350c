package driver

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/hashicorp/nomad/plugins/drivers"
	"github.com/shoenig/test/must"

	"nomad-driver-nspawn/nspawn"
)

func TestResolvePaths(t *testing.T) {
	cfg := &drivers.TaskConfig{Name: "web", AllocDir: t.TempDir()}
	dirs := cfg.TaskDir()
	private := filepath.Join(dirs.Dir, "private")
	for _, dir := range []string{dirs.LogDir, dirs.SharedAllocDir, dirs.LocalDir, dirs.SecretsDir, private} {
		must.NoError(t, os.MkdirAll(dir, 0o755))
	}
	link := func(name, target string) string {
		path := filepath.Join(dirs.LocalDir, name)
		must.NoError(t, os.Symlink(target, path))
		return path
	}
	for source, want := range map[string]string{
		dirs.LocalDir:                           "",
		dirs.SharedAllocDir:                     "",
		link("inside", "../secrets"):            "",
		"/etc":                                  "", // allowed by the operator, or it is not here
		link("host", "/etc"):                    "leads out of the task's directory, to /etc",
		link("logs", dirs.LogDir):               "leads out of the task's directory",
		filepath.Join(dirs.LocalDir, "missing"): "missing: no such file",
		private:                                 "shows Nomad's own files of the task, in private",
		filepath.Join(private, "missing"):       "no such file",
		dirs.Dir:                                "shows Nomad's own files of the task, in private",
		link("private", "../private"):           "shows Nomad's own files of the task, in private",
	} {
		for _, spec := range []nspawn.Spec{
			{Binds: []nspawn.Bind{{Source: source, Destination: "/x"}}},
			{Overlays: []nspawn.Overlay{{Lower: []nspawn.Layer{{Path: source}}, Destination: "/x"}}},
			{Overlays: []nspawn.Overlay{{Upper: source, Lower: []nspawn.Layer{{Path: "/not/of/the/host", InRoot: true}}, Destination: "/x"}}},
		} {
			err := resolvePaths(spec, cfg)
			if want == "" {
				must.NoError(t, err)
			} else {
				must.ErrorContains(t, err, want, must.Sprint(source))
			}
		}
	}
}
