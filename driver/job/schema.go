package job

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/hashicorp/nomad/plugins/shared/hclspec"
)

// options are the schemas of options by name.
type options map[string]*hclspec.Spec

func attr(name, kind string) *hclspec.Spec { return hclspec.NewAttr(name, kind, false) }

func requiredAttr(name, kind string) *hclspec.Spec { return hclspec.NewAttr(name, kind, true) }

// withDefault is an attribute with a default, which is written as JSON: for
// booleans, numbers, strings and lists this is HCL, too.
func withDefault(name, kind string, value any) *hclspec.Spec {
	literal, err := json.Marshal(value)
	if err != nil {
		panic(fmt.Sprintf("default of %s: %v", name, err)) // a mistake in this package
	}
	return hclspec.NewDefault(attr(name, kind), hclspec.NewLiteral(string(literal)))
}

// stringMap is a map of strings. Nomad's parser turns every way to write one into
// a block, and a plain attribute of type map(string) takes none of them.
func stringMap(name string) *hclspec.Spec { return hclspec.NewBlockAttrs(name, "string", false) }

func block(name string, nested options) *hclspec.Spec {
	return hclspec.NewBlock(name, false, hclspec.NewObject(nested))
}

// presentBlock is a block whose options have their defaults even if the block is
// left out.
func presentBlock(name string, nested options) *hclspec.Spec {
	var fields []string
	for _, option := range slices.Sorted(maps.Keys(nested)) {
		literal := "null"
		if d := nested[option].GetDefault(); d != nil {
			literal = d.GetDefault().GetLiteral().GetValue()
		}
		fields = append(fields, option+" = "+literal)
	}
	return hclspec.NewDefault(block(name, nested), hclspec.NewLiteral("{ "+strings.Join(fields, ", ")+" }"))
}
