// Package schema describes options of a `config` block, of a job or of the operator: their
// types in HCL, and the checks of their values.
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

// Attr returns an attribute that may be left out.
func Attr(name, kind string) *hclspec.Spec { return hclspec.NewAttr(name, kind, false) }

// RequiredAttr returns an attribute that must be set.
func RequiredAttr(name, kind string) *hclspec.Spec { return hclspec.NewAttr(name, kind, true) }

// WithDefault returns an attribute with a default. The default is written as JSON, which
// is also HCL for booleans, numbers, strings and lists.
func WithDefault(name, kind string, value any) *hclspec.Spec {
	literal, err := json.Marshal(value)
	if err != nil {
		panic(fmt.Sprintf("default of %s: %v", name, err)) // a mistake in the package of the option
	}
	return hclspec.NewDefault(Attr(name, kind), hclspec.NewLiteral(string(literal)))
}

// StringMap returns a map of strings. Nomad's parser turns every way to write one into a
// block, and a plain attribute of type map(string) accepts none of them.
func StringMap(name string) *hclspec.Spec { return hclspec.NewBlockAttrs(name, "string", false) }

// Block returns a block that may be left out.
func Block(name string, nested Options) *hclspec.Spec {
	return hclspec.NewBlock(name, false, hclspec.NewObject(nested))
}

// PresentBlock returns a block whose options have their defaults even if the block is left
// out.
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
