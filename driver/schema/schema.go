// Package schema is about the options of a `config` block, whoever writes it: the
// types that they have in HCL, and the checks of their values.
package schema

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/hashicorp/nomad/plugins/shared/hclspec"
)

// Options are the schemas of options by name.
type Options map[string]*hclspec.Spec

// Merge returns the schema of a block that has the options of all features.
func Merge(features ...Options) *hclspec.Spec {
	all := Options{}
	for _, feature := range features {
		maps.Copy(all, feature)
	}
	return hclspec.NewObject(all)
}

// Attr is an attribute that may be left out.
func Attr(name, kind string) *hclspec.Spec { return hclspec.NewAttr(name, kind, false) }

// RequiredAttr is an attribute that must be set.
func RequiredAttr(name, kind string) *hclspec.Spec { return hclspec.NewAttr(name, kind, true) }

// WithDefault is an attribute with a default, which is written as JSON: for
// booleans, numbers, strings and lists this is HCL, too.
func WithDefault(name, kind string, value any) *hclspec.Spec {
	literal, err := json.Marshal(value)
	if err != nil {
		panic(fmt.Sprintf("default of %s: %v", name, err)) // a mistake of the package that has the option
	}
	return hclspec.NewDefault(Attr(name, kind), hclspec.NewLiteral(string(literal)))
}

// StringMap is a map of strings. Nomad's parser turns every way to write one into
// a block, and a plain attribute of type map(string) takes none of them.
func StringMap(name string) *hclspec.Spec { return hclspec.NewBlockAttrs(name, "string", false) }

// Block is a block that may be left out.
func Block(name string, nested Options) *hclspec.Spec {
	return hclspec.NewBlock(name, false, hclspec.NewObject(nested))
}

// PresentBlock is a block whose options have their defaults even if the block is
// left out.
func PresentBlock(name string, nested Options) *hclspec.Spec {
	var fields []string
	for _, option := range slices.Sorted(maps.Keys(nested)) {
		literal := "null"
		if d := nested[option].GetDefault(); d != nil {
			literal = d.GetDefault().GetLiteral().GetValue()
		}
		fields = append(fields, option+" = "+literal)
	}
	return hclspec.NewDefault(Block(name, nested), hclspec.NewLiteral("{ "+strings.Join(fields, ", ")+" }"))
}
