package job

import (
	"bytes"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/hashicorp/hcl"
	"github.com/hashicorp/hcl/hcl/ast"
	"github.com/hashicorp/nomad/helper/pluginutils/hclspecutils"
	"github.com/hashicorp/nomad/helper/pluginutils/hclutils"
	"github.com/hashicorp/nomad/plugins/base"
	"github.com/hashicorp/nomad/plugins/drivers"
	"github.com/shoenig/test/must"
	"golang.org/x/tools/txtar"

	"nomad-driver-nspawn/driver/operator"
	"nomad-driver-nspawn/nspawn/machine"
	"nomad-driver-nspawn/nspawn/parts"
)

// FuzzConfig makes the config of a task, and what Nomad and the image add, of bytes, and
// takes it the whole way: from the msgpack that a client sends to the command line of
// systemd-nspawn and the properties of the unit. What must hold there is in
// fuzz_check_test.go. It is fast enough for ten million executions:
//
//	go test -run - -fuzz FuzzConfig$ -fuzztime 10000000x -parallel 1 ./driver/job
func FuzzConfig(f *testing.F) {
	for seed := range byte(64) {
		f.Add(bytes.Repeat([]byte{seed, seed * 5, 3, seed + 7, 200}, 8))
	}
	for _, seed := range seedsOfOptions() {
		f.Add(seed)
	}
	policies := policiesOf(f)
	f.Fuzz(func(t *testing.T, data []byte) {
		b := &bytesOf{data}
		s := newSituation(policies, b)
		var task TaskConfig
		if err := base.MsgPackDecode(s.makeConfig(b), &task); err != nil {
			return // such as half a number where a whole one is wanted
		}
		s.run(t, task)
	})
}

// FuzzConfigText does the same with HCL, for what only a parser makes of a text. From
// ParseHclInterface on it is what a client does.
func FuzzConfigText(f *testing.F) {
	files, err := filepath.Glob("testdata/spec/*.txtar")
	must.NoError(f, err)
	for _, file := range files {
		archive, err := txtar.ParseFile(file)
		must.NoError(f, err)
		f.Add(string(fileOf(archive, "config.hcl")), []byte{0})
		f.Add(string(fileOf(archive, "config.hcl")), []byte{1})
	}
	f.Add(`image = "a(b:%\5000/c"`, []byte{0})
	spec, diagnostics := hclspecutils.Convert(TaskSchema)
	must.False(f, diagnostics.HasErrors())
	policies := policiesOf(f)
	f.Fuzz(func(t *testing.T, text string, around []byte) {
		config, err := parseHCL(text)
		if err != nil {
			return
		}
		value, diagnostics, errs := hclutils.ParseHclInterface(config, spec, nil)
		if diagnostics.HasErrors() || len(errs) > 0 {
			return
		}
		var task TaskConfig
		var cfg drivers.TaskConfig
		if cfg.EncodeDriverConfig(value) != nil || cfg.DecodeDriverConfig(&task) != nil {
			return
		}
		newSituation(policies, &bytesOf{around}).run(t, task)
	})
}

// parseHCL parses the config block of a job. The parser, which no client runs, panics on
// some strings with a backslash.
func parseHCL(text string) (config any, err error) {
	defer func() {
		if reason := recover(); reason != nil {
			err = fmt.Errorf("parse: %v", reason)
		}
	}()
	root, err := hcl.Parse("config {\n" + text + "\n}")
	if err != nil {
		return nil, err
	}
	list, ok := root.Node.(*ast.ObjectList)
	if !ok || len(list.Items) != 1 {
		return nil, errors.New("not one block")
	}
	var blocks map[string]any
	if err := hcl.DecodeObject(&blocks, list.Items[0]); err != nil {
		return nil, err
	}
	return blocks["config"], nil
}

// TestFuzzConfigIsAsNomads compares what FuzzConfig makes of a config with what Nomad
// makes of its HCL.
func TestFuzzConfigIsAsNomads(t *testing.T) {
	for text, set := range map[string]map[string]value{
		`image = "x"`: {"image": "x"},
		`image = "x"
		shm_size = 5
		port_map { http = 80 }
		mount { target = "/a" }
		disk { size = "1GB" }
		environment { a = "b" }
		command = ["a", 1, true]`: {
			"image": "x", "shm_size": int64(5), "port_map": []value{map[string]value{"http": int64(80)}},
			"mount":       []value{map[string]value{"type": "bind", "target": "/a", "source": nil, "readonly": nil, "tmpfs_options": nil}},
			"disk":        map[string]value{"size": "1GB", "in_memory": false},
			"environment": map[string]value{"a": "b"}, "command": []value{"a", int64(1), true},
		},
	} {
		var want, got map[string]any
		hclutils.NewConfigParser(TaskSchema).ParseHCL(t, "config {\n"+text+"\n}", &want)
		s := situation{values: set}
		must.NoError(t, base.MsgPackDecode(s.config(), &got))
		must.Eq(t, want, got)
	}
}

// seedsOfOptions has a few values of each option, the image being a plain one.
func seedsOfOptions() (seeds [][]byte) {
	for i := range taskShapes() {
		for variant := range byte(6) {
			seeds = append(seeds, []byte{variant, 0, byte(i), variant, variant, variant * 3, variant, 1, 2, 3, 4})
		}
	}
	return seeds
}

var taskShapes = sync.OnceValue(func() []*shape {
	all := shapesOf(TaskSchema)
	for _, option := range all {
		option.encodedName, option.encodedNormal = appendValue(nil, option.name), appendValue(nil, option.normal)
	}
	return all
})

// policy is an operator's, and what it allows.
type policy struct {
	operator.Policy
	closed bool // it is the default one
}

func policiesOf(tb testing.TB) (list []policy) {
	spec, diagnostics := hclspecutils.Convert(operator.ConfigSchema)
	must.False(tb, diagnostics.HasErrors())
	for _, text := range []string{"", `
		allow_sysctls = ["net.ipv4.ip_*"]
		allow_devices = ["/dev/fuse", "/dev/open*"]
		allow_host_network = true
		allow_in_place = true
		allow_journald_logging = true
		allow_network_bridges = ["br*"]
		allow_network_interfaces = ["dummy*"]
		allow_privileged = true
		allow_unverified_images = true
		allow_disk_images = true
		volumes = true
		volume_paths = ["/srv/open"]
	`} {
		config, err := parseHCL(text)
		must.NoError(tb, err)
		value, diagnostics, _ := hclutils.ParseHclInterface(config, spec, nil)
		must.False(tb, diagnostics.HasErrors())
		var cfg drivers.TaskConfig
		var plugin operator.Config
		must.NoError(tb, cfg.EncodeDriverConfig(value))
		must.NoError(tb, cfg.DecodeDriverConfig(&plugin))
		must.NoError(tb, plugin.Validate())
		list = append(list, policy{plugin.Policy("default"), strings.TrimSpace(text) == ""})
	}
	return list
}

// run takes a config the whole way, and checks what comes out.
func (s *situation) run(t *testing.T, task TaskConfig) {
	task.Translate()
	if task.FromStore() {
		if _, err := task.Source(s.policy.Policy); err != nil {
			return
		}
	}
	spec, err := task.Spec(s.input())
	if err != nil {
		if err.Error() == "" {
			t.Fatal("refused without a word")
		}
		return
	}
	if err := parts.Check(spec); err != nil {
		return
	}
	// Nothing of these may panic.
	task.PortLabels(spec.Network)
	spec.Names.Files()
	for i := range spec.Devices {
		spec.Devices[i].Source = "/dev/char/1:3" // as parts.makeDevices names those that it has opened
	}
	host := exampleHost(spec)
	c := checker{t: t, s: s, task: &task, spec: &spec, host: &host, argv: machine.Argv(spec, host), own: Directories(s.cfg)}
	c.check(machine.Properties(spec, host))
}
