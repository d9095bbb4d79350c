package schema

import (
	"regexp"
	"testing"

	"github.com/hashicorp/nomad/helper/pluginutils/hclutils"
	"github.com/shoenig/test/must"
)

// TestDefaults checks that the defaults of a block also apply if it is left out, unless
// the block may be missing.
func TestDefaults(t *testing.T) {
	type times struct {
		Every string   `codec:"every"`
		Names []string `codec:"names"`
		Note  string   `codec:"note"`
	}
	nested := Options{
		"every": WithDefault("every", "string", "5m"),
		"names": WithDefault("names", "list(string)", []string{"a\"b", "c"}),
		"note":  Attr("note", "string"),
	}
	parser := hclutils.NewConfigParser(Merge(
		Options{"present": PresentBlock("present", nested)},
		Options{"optional": Block("optional", nested), "map": StringMap("map")},
	))
	type config struct {
		Present  times             `codec:"present"`
		Optional *times            `codec:"optional"`
		Map      map[string]string `codec:"map"`
	}
	defaults := times{Every: "5m", Names: []string{"a\"b", "c"}}
	for hcl, want := range map[string]config{
		"":                            {Present: defaults},
		"optional {}":                 {Present: defaults, Optional: &defaults},
		"present {\n every = \"1m\"}": {Present: times{Every: "1m", Names: defaults.Names}},
		"map = { \"a.b\" = \"c\" }":   {Present: defaults, Map: map[string]string{"a.b": "c"}},
	} {
		var got config
		parser.ParseHCL(t, "config {\n"+hcl+"\n}", &got)
		must.Eq(t, want, got, must.Sprint(hcl))
	}
}

func TestMistakes(t *testing.T) {
	var found Mistakes
	found.Add(nil, Absolute("a", ""), OneOf("b", "", nil), Matches("c", "", regexp.MustCompile("x"), "x"), NotEmpty("d", "x"))
	found.Unless(true, "e")
	must.NoError(t, found.Err())
	found.Unless(false, "%s: no", At("f", 1))
	found.Add(Absolute("a", "srv"), OneOf("b", "z", []string{"x", "y"}), Matches("c", "y", regexp.MustCompile("x"), "an x"),
		NotEmpty("d", ""), CheckDuration("g", "-1s"), CheckSize("h", "much", "2GB"), Prefixed("i: ", nil), Prefixed("j: ", NotEmpty("k", "")))
	must.EqError(t, found.Err(), `f[1]: no
a: "srv" is not an absolute path
b: "z" is not one of x, y
c: "y" is not an x
d: must not be empty
g: "-1s" is not a positive duration, as 5m
h: "much" is not a size, as 2GB
j: k: must not be empty`)
}
