package job

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/hashicorp/nomad/helper/pluginutils/hclutils"
	"github.com/hashicorp/nomad/nomad/structs"
	"github.com/hashicorp/nomad/plugins/drivers"
	"github.com/shoenig/test/must"
	"golang.org/x/tools/txtar"

	"nomad-driver-nspawn/driver/operator"
	"nomad-driver-nspawn/nspawn/dirs"
	"nomad-driver-nspawn/nspawn/idmap"
	"nomad-driver-nspawn/nspawn/machine"
	"nomad-driver-nspawn/nspawn/network/names"
	"nomad-driver-nspawn/nspawn/parts"
	"nomad-driver-nspawn/nspawn/programs"
)

var update = flag.Bool("update", false, "write the golden files anew")

// goldenVersion is the systemd version of the golden command lines. Later versions differ
// only in what spec_test.go of package machine shows.
const goldenVersion = 257

// exampleHost returns what the machine of a spec would be run with. Paths and numbers are
// examples.
func exampleHost(s machine.Spec) machine.Host {
	var base uint32
	if s.Root.UserNamespace {
		base = 1000 * idmap.RangeSize
	}
	p := programs.Programs{Nspawn: "systemd-nspawn", Version: goldenVersion, Own: "nomad-driver-nspawn"}
	return parts.HostOf(dirs.Default, s, base, p)
}

// TestSpecGolden shows the whole effect of each feature: from the job's config and Nomad's
// task to the machine's command line and unit properties.
func TestSpecGolden(t *testing.T) {
	files, err := filepath.Glob("testdata/spec/*.txtar")
	must.NoError(t, err)
	must.SliceNotEmpty(t, files)
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			archive, err := txtar.ParseFile(file)
			must.NoError(t, err)
			got := goldenResult(t, archive)
			if *update {
				setFile(archive, "result", got)
				must.NoError(t, os.WriteFile(file, txtar.Format(archive), 0o644))
			}
			must.Eq(t, string(fileOf(archive, "result")), got)
		})
	}
}

func goldenResult(t *testing.T, archive *txtar.Archive) string {
	config := parseConfig(t, string(fileOf(archive, "plugin.hcl")))
	task := parseTask(t, string(fileOf(archive, "config.hcl")))
	cfg := exampleTask()
	if overrides := fileOf(archive, "task.json"); overrides != nil {
		must.NoError(t, json.Unmarshal(overrides, cfg))
	}
	dns := names.Host{ResolvConf: "nameserver 127.0.0.53\nsearch example.net\n", Uplink: "nameserver 192.0.2.1\nsearch example.net\n"}
	image := Image{Tree: "/var/lib/machines/debian"}
	if config := fileOf(archive, "image.json"); config != nil {
		image = Image{StoreDigest: "sha256:" + strings.Repeat("0", 64)}
		must.NoError(t, json.Unmarshal(config, &image.Config))
	}
	controllers := []string{"cpu", "cpuset", "io", "memory", "pids"}
	if list := fileOf(archive, "controllers"); list != nil {
		controllers = strings.Fields(string(list))
	}
	task.Translate()
	spec, err := task.Spec(Input{
		Policy: config.Policy(cfg.Namespace), Task: cfg, Image: image, DNS: dns,
		Cores: 4, Controllers: controllers, MaxFiles: 1 << 20,
	})
	if err != nil {
		return "error:\n" + err.Error() + "\n"
	}
	result := machine.Describe(spec, exampleHost(spec)) + describeNetwork(spec.Network)
	for _, file := range slices.Concat(spec.Names.Files(), spec.Root.Files) {
		result += "\n# " + file.Path + "\n" + file.Content
	}
	for _, directory := range spec.Root.Directories {
		result += "\n# " + directory + "/\n"
	}
	for i, overlay := range spec.Overlays {
		result += fmt.Sprintf("\n# overlays/%d\n", i)
		for _, layer := range overlay.Lower {
			result += fmt.Sprintf("lower %s (in root: %t)\n", layer.Path, layer.InRoot)
		}
		if !overlay.ReadOnly {
			result += fmt.Sprintf("upper %q\n", overlay.Upper)
		}
	}
	return result
}

// describeNetwork shows what the driver itself makes, which no command line has.
func describeNetwork(network machine.Network) string {
	if network.Kind == "" {
		return ""
	}
	lines := []string{"\n# network", strings.TrimSpace(fmt.Sprintf("%s %s %s", network.Kind, network.Of, network.Name))}
	for _, mapping := range network.Ports {
		lines = append(lines, mapping.String())
	}
	return strings.Join(lines, "\n") + "\n"
}

func exampleTask() *drivers.TaskConfig {
	const alloc = "2e0a7b7c-6a8f-4f1e-9d0c-5b1f4c3d2e1f"
	dir := "/var/lib/nomad/alloc/" + alloc
	return &drivers.TaskConfig{
		ID: alloc + "/web/1234abcd", AllocID: alloc, Name: "web",
		JobName: "shop", JobID: "shop", TaskGroupName: "front", Namespace: "default",
		AllocDir: dir,
		Env: map[string]string{
			"NOMAD_ALLOC_DIR": "/alloc", "NOMAD_TASK_DIR": "/local", "NOMAD_SECRETS_DIR": "/secrets",
			"NOMAD_TOKEN": "the-secret-token",
		},
		Resources: &drivers.Resources{
			NomadResources: &structs.AllocatedTaskResources{Memory: structs.AllocatedMemoryResources{MemoryMB: 300}},
			LinuxResources: &drivers.LinuxResources{CPUShares: 1024},
			Ports:          &structs.AllocatedPorts{{Label: "http", Value: 28080, To: 80}, {Label: "metrics", Value: 29100}},
		},
	}
}

func parseTask(t *testing.T, hcl string) TaskConfig {
	var task TaskConfig
	hclutils.NewConfigParser(TaskSchema).ParseHCL(t, "config {\n"+hcl+"\n}", &task)
	return task
}

func parseConfig(t *testing.T, hcl string) (config operator.Config) {
	hclutils.NewConfigParser(operator.ConfigSchema).ParseHCL(t, "config {\n"+hcl+"\n}", &config)
	return config
}

func fileOf(archive *txtar.Archive, name string) []byte {
	for _, file := range archive.Files {
		if file.Name == name {
			return file.Data
		}
	}
	return nil
}

func setFile(archive *txtar.Archive, name, content string) {
	for i, file := range archive.Files {
		if file.Name == name {
			archive.Files[i].Data = []byte(content)
			return
		}
	}
	archive.Files = append(archive.Files, txtar.File{Name: name, Data: []byte(content)})
}

// TestDescriptionIsOneLine checks that the description is one line, because systemd writes
// it unchanged into the unit's file.
func TestDescriptionIsOneLine(t *testing.T) {
	cfg := exampleTask()
	cfg.JobName = "x\nExecStartPre=/bin/evil\r\x00"
	must.StrNotContains(t, Description(cfg), "\n")
	must.StrContains(t, Description(cfg), "job x?ExecStartPre=/bin/evil??")
}
