package driver

import (
	"reflect"
	"slices"
	"testing"

	"github.com/hashicorp/nomad/plugins/shared/hclspec"
	"github.com/shoenig/test/must"

	"nomad-driver-nspawn/driver/job"
	"nomad-driver-nspawn/driver/operator"
)

// TestTagsAndSchema checks that each codec tag is in the schema, and that each option of
// the schema has a tag, in nested blocks too: msgpack silently drops a value without a
// field. TestReadmeOptions compares README with the schema.
func TestTagsAndSchema(t *testing.T) {
	for name, c := range map[string]struct {
		config any
		schema *hclspec.Spec
	}{
		"job":      {job.TaskConfig{}, job.TaskSchema},
		"operator": {operator.Config{}, operator.ConfigSchema},
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

// tagsOf returns the paths of all codec tags of a struct, in the form block.option.
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
