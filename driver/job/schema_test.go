package job

import (
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/hashicorp/nomad/helper/pluginutils/hclutils"
	"github.com/hashicorp/nomad/plugins/shared/hclspec"
	"github.com/shoenig/test/must"
)

// TestTagsAndSchema wants each codec tag in the schema, and each option of the schema
// as a tag, nested blocks too: msgpack drops a field without a tag and without a word.
// README is held against the schema in package driver.
func TestTagsAndSchema(t *testing.T) {
	for name, c := range map[string]struct {
		config any
		schema *hclspec.Spec
	}{
		"task":   {TaskConfig{}, TaskSchema},
		"plugin": {Config{}, ConfigSchema},
	} {
		t.Run(name, func(t *testing.T) {
			tags, keys := tagsOf(t, "", reflect.TypeOf(c.config)), keysOf("", c.schema)
			must.SliceNotEmpty(t, tags)
			slices.Sort(tags)
			slices.Sort(keys)
			must.Eq(t, keys, tags)
		})
	}
}

// tagsOf returns the paths of all codec tags of a struct, as block.option.
func tagsOf(t *testing.T, prefix string, s reflect.Type) (tags []string) {
	for field := range fieldsOf(s) {
		tag := field.Tag.Get("codec")
		if field.Anonymous {
			must.Eq(t, "", tag)
			tags = append(tags, tagsOf(t, prefix, field.Type)...)
			continue
		}
		must.NotEq(t, "", tag, must.Sprintf("%s has no codec tag", field.Name))
		tags = append(tags, prefix+tag)
		nested := field.Type
		for nested.Kind() == reflect.Pointer || nested.Kind() == reflect.Map || nested.Kind() == reflect.Slice {
			nested = nested.Elem()
		}
		if nested.Kind() == reflect.Struct {
			tags = append(tags, tagsOf(t, prefix+tag+".", nested)...)
		}
	}
	return tags
}

func fieldsOf(s reflect.Type) func(func(reflect.StructField) bool) {
	return func(yield func(reflect.StructField) bool) {
		for i := range s.NumField() {
			if !yield(s.Field(i)) {
				return
			}
		}
	}
}

func keysOf(prefix string, schema *hclspec.Spec) (keys []string) {
	for name, spec := range schema.GetObject().GetAttributes() {
		keys = append(keys, prefix+name)
		if d := spec.GetDefault(); d != nil {
			spec = d.GetPrimary()
		}
		keys = append(keys, keysOf(prefix+name+".", spec.GetBlockValue().GetNested())...)
		keys = append(keys, keysOf(prefix+name+".", spec.GetBlockMap().GetNested())...)
		keys = append(keys, keysOf(prefix+name+".", spec.GetBlockList().GetNested())...)
	}
	return keys
}

// TestDefaults wants one set of defaults, with a schema and without.
func TestDefaults(t *testing.T) {
	must.Eq(t, DefaultConfig(), parseConfig(t, ""))
	must.NoError(t, DefaultConfig().Validate())
}

// TestMistakesOfConfig wants all mistakes of the operator at once.
func TestMistakesOfConfig(t *testing.T) {
	err := parseConfig(t, `
		image_paths           = ["srv"]
		image_pull_timeout    = "soon"
		pull_activity_timeout = "0s"
		registry {
			ca_file    = "ca.pem"
			plain_http = ["http://example.org"]
			mirrors    = { "https://docker.io" = [] }
		}
		image_gc {
			max_size = "big"
		}
	`).Validate()
	for _, want := range []string{
		`image_paths[0]: "srv"`, `image_pull_timeout: "soon"`, `pull_activity_timeout: "0s"`, `registry.ca_file: "ca.pem"`,
		`registry.plain_http[0]: "http://example.org"`, `registry.mirrors: "https://docker.io"`, `image_gc.max_size: "big"`,
	} {
		must.ErrorContains(t, err, want)
	}
	must.Eq(t, 7, strings.Count(err.Error(), "\n")+1)
}

// The forms of a map in a job.
func TestMapOptions(t *testing.T) {
	want := map[string]string{"local/a": "/a", "local/b": "/b"}
	for _, hcl := range []string{
		`bind { 
			"local/a" = "/a"
			"local/b" = "/b"
		}`,
		`bind = { "local/a" = "/a", "local/b" = "/b" }`,
	} {
		must.Eq(t, want, parseTask(t, "image = \"debian\"\n"+hcl).Bind)
	}
	var task TaskConfig
	hclutils.NewConfigParser(TaskSchema).ParseJson(t, `{"Config": {"image": "debian", "bind": {"local/a": "/a", "local/b": "/b"}}}`, &task)
	must.Eq(t, want, task.Bind)
}
