package driver

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hashicorp/nomad/plugins/drivers"
	"github.com/shoenig/test/must"

	"nomad-driver-nspawn/driver/job"
	"nomad-driver-nspawn/driver/operator"
	"nomad-driver-nspawn/nspawn/machine"
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
		"/etc":                                  "", // a path of the host, checked against the operator's rules elsewhere
		link("host", "/etc"):                    "leads out of the task's directory, to /etc",
		link("logs", dirs.LogDir):               "leads out of the task's directory",
		filepath.Join(dirs.LocalDir, "missing"): "missing: no such file",
		private:                                 "shows Nomad's own files of the task, in private",
		filepath.Join(private, "missing"):       "no such file",
		dirs.Dir:                                "shows Nomad's own files of the task, in private",
		link("private", "../private"):           "shows Nomad's own files of the task, in private",
	} {
		for _, spec := range []machine.Spec{
			{Binds: []machine.Bind{{Source: source, Destination: "/x"}}},
			{Overlays: []machine.Overlay{{Lower: []machine.Layer{{Path: source}}, Destination: "/x"}}},
			{Overlays: []machine.Overlay{{Upper: source, Lower: []machine.Layer{{Path: "/not/of/the/host", InRoot: true}}, Destination: "/x"}}},
		} {
			err := resolvePaths(operator.Policy{}, job.TaskConfig{}, &spec, cfg)
			if want == "" {
				must.NoError(t, err)
			} else {
				must.ErrorContains(t, err, want, must.Sprint(source))
			}
		}
	}
}

// TestResolveVolumePaths checks that a link must not lead out of the directories that the
// operator allows, and that the operator's own links are followed.
func TestResolveVolumePaths(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"srv/data", "etc", "alloc"} {
		must.NoError(t, os.MkdirAll(filepath.Join(dir, name), 0o755))
	}
	must.NoError(t, os.Symlink(filepath.Join(dir, "etc"), filepath.Join(dir, "srv/link")))
	must.NoError(t, os.Symlink("srv", filepath.Join(dir, "allowed")))
	config := parseConfig(t, fmt.Sprintf("volumes = true\nvolume_paths = [%q]", filepath.Join(dir, "allowed")))
	for name, want := range map[string]string{
		"allowed/data": "",
		"allowed/link": "volume_paths",
	} {
		source := filepath.Join(dir, name)
		for _, option := range []string{
			`bind = { "SOURCE" = "/x" }`, `bind_read_only = { "SOURCE" = "/x" }`, `volumes = ["SOURCE:/x"]`,
			"mount {\nsource = \"SOURCE\"\ntarget = \"/x\"\n}",
		} {
			task := parseTask(t, "image = \"debian\"\n"+strings.ReplaceAll(option, "SOURCE", source))
			spec := machine.Spec{Binds: []machine.Bind{{Source: source, Destination: "/x"}}}
			err := resolvePaths(config.Policy("default"), task, &spec, &drivers.TaskConfig{AllocDir: filepath.Join(dir, "alloc")})
			if want == "" {
				must.NoError(t, err)
			} else {
				must.ErrorContains(t, err, want, must.Sprint(option))
			}
		}
	}
}
