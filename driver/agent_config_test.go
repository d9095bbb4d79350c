package driver

import (
	"strings"
	"testing"

	"nomad-driver-nspawn/driver/operator"

	"github.com/hashicorp/hcl"
	"github.com/hashicorp/nomad/helper/pluginutils/hclspecutils"
	"github.com/hashicorp/nomad/helper/pluginutils/hclutils"
	"github.com/hashicorp/nomad/nomad/structs/config"
	"github.com/hashicorp/nomad/plugins/base"
	"github.com/shoenig/test/must"
	"github.com/zclconf/go-cty/cty/msgpack"
)

// setAgentConfig passes an agent's configuration file to the driver in the same way as an
// agent: by HCL 1, which has no types, JSON, and the schema
// (command/agent/config_parse.go, helper/pluginutils/loader/init.go).
func setAgentConfig(t *testing.T, d *Driver, text string) error {
	var file struct {
		Plugins []*config.PluginConfig `hcl:"plugin"`
	}
	must.NoError(t, hcl.Decode(&file, text))
	must.SliceLen(t, 1, file.Plugins)
	schema, err := d.ConfigSchema()
	must.NoError(t, err)
	spec, diagnostics := hclspecutils.Convert(schema)
	must.False(t, diagnostics.HasErrors(), must.Sprint(diagnostics))
	options := file.Plugins[0].Config
	if options == nil {
		options = map[string]any{}
	}
	value, diagnostics, _ := hclutils.ParseHclInterface(options, spec, nil)
	if diagnostics.HasErrors() {
		return diagnostics
	}
	data, err := msgpack.Marshal(value, value.Type())
	must.NoError(t, err)
	return d.SetConfig(&base.Config{PluginConfig: data})
}

func TestSetConfigOfNothing(t *testing.T) {
	for _, data := range [][]byte{nil, {}, {0x80}} { // none, and an empty map of msgpack
		d := &Driver{}
		must.NoError(t, d.SetConfig(&base.Config{PluginConfig: data}))
		must.Eq(t, operator.DefaultConfig(), d.currentConfig())
	}
	d := &Driver{}
	must.NoError(t, setAgentConfig(t, d, `plugin "nomad-driver-nspawn" {}`))
	must.Eq(t, operator.DefaultConfig(), d.currentConfig())
}

// examplesBelow returns the blocks of code below a heading of README.
func examplesBelow(t *testing.T, heading string) (examples []string) {
	for i, part := range strings.Split(sectionBelow(t, heading), "```") {
		if i%2 == 1 {
			_, example, _ := strings.Cut(part, "\n") // without the language
			examples = append(examples, example)
		}
	}
	return examples
}

func TestReadmeNamespaces(t *testing.T) {
	examples := examplesBelow(t, "#### Rules by namespace")
	must.SliceLen(t, 1, examples)
	d := &Driver{}
	must.NoError(t, setAgentConfig(t, d, examples[0]))
	must.NoError(t, d.currentConfig().Policy("system").HostNetwork())
	must.ErrorContains(t, d.currentConfig().Policy("default").HostNetwork(), "allow_host_network")
	must.ErrorContains(t, setAgentConfig(t, d, strings.Replace(examples[0], `"/srv"`, `"srv"`, 1)), `namespace "system": volume_paths[0]`)
}

// TestReadmeMirrors checks that each form of `mirrors` that README shows is accepted.
func TestReadmeMirrors(t *testing.T) {
	examples := examplesBelow(t, "#### Mirrors")
	must.SliceLen(t, 3, examples)
	for _, example := range examples {
		d := &Driver{}
		must.NoError(t, setAgentConfig(t, d, example), must.Sprint(example))
		must.Eq(t, map[string][]string{
			"docker.io": {"mirror.example.org:5000"},
			"quay.io":   {"mirror.example.org:5000", "mirror2.example.org"},
		}, d.currentConfig().Registry.Mirrors, must.Sprint(example))
	}
}
