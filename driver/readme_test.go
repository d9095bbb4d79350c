package driver

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/hashicorp/nomad/plugins/shared/hclspec"
	"github.com/shoenig/test/must"

	"nomad-driver-nspawn/driver/job"
	"nomad-driver-nspawn/driver/operator"
	"nomad-driver-nspawn/nspawn"
)

// row is README's row about an option, without the meaning.
func row(name, kind, value string) string {
	return name + ": " + kind + ", default " + value
}

// notLiteral stands for a default that README describes in words: the schema has none.
const notLiteral = "told in words"

// TestReadmeOptions compares the option reference with the schemas.
func TestReadmeOptions(t *testing.T) {
	for heading, schema := range map[string]*hclspec.Spec{
		"### Task options":   job.TaskSchema,
		"### Plugin options": operator.ConfigSchema,
	} {
		t.Run(strings.TrimLeft(heading, "# "), func(t *testing.T) {
			var documented []string
			for _, cells := range tablesBelow(t, heading, "Option", "Type", "Default", "Meaning") {
				must.NotEq(t, "", cells[3])
				documented = append(documented, row(code(t, cells[0]), cells[1], documentedDefault(t, cells[2])))
			}
			slices.Sort(documented)
			want := schemaRows(t, "", schema)
			slices.Sort(want)
			must.Eq(t, strings.Join(want, "\n"), strings.Join(documented, "\n"))
		})
	}
}

// TestReadmeAttributes compares the table of node attributes with those that the driver
// sends.
func TestReadmeAttributes(t *testing.T) {
	var documented []string
	for _, cells := range tableBelow(t, "### Node attributes", "Attribute", "Meaning") {
		must.NotEq(t, "", cells[1])
		documented = append(documented, code(t, cells[0]))
	}
	slices.Sort(documented)
	must.Eq(t, slices.Sorted(maps.Keys(attributes(operator.Config{}, nspawn.Host{}))), documented)
}

// TestReadmeMake checks that each target that README names is in GNUmakefile, and that
// each target that `make help` shows is in README.
func TestReadmeMake(t *testing.T) {
	targets := captured(`(?m)^([a-z0-9-]+):.*## `, readFile(t, "GNUmakefile"))
	named := captured("(?m)(?:^|`)make ([a-z0-9-]+)", readFile(t, "README.md"))
	must.SliceNotEmpty(t, targets)
	must.Eq(t, targets, named)
}

// TestReadmeLinks checks that everything that README links to is in the checkout.
func TestReadmeLinks(t *testing.T) {
	links := captured(`\]\(([^):#]+)\)`, readFile(t, "README.md"))
	must.SliceNotEmpty(t, links)
	for _, link := range links {
		_, err := os.Stat(filepath.Join("..", link))
		must.NoError(t, err)
	}
}

// schemaRows returns the rows that README must have for a schema. The options of a block
// are documented as block.option.
func schemaRows(t *testing.T, prefix string, schema *hclspec.Spec) (rows []string) {
	for name, spec := range schema.GetObject().GetAttributes() {
		name, value := prefix+name, notLiteral
		if d := spec.GetDefault(); d != nil {
			spec, value = d.GetPrimary(), d.GetDefault().GetLiteral().GetValue()
		}
		switch {
		case spec.GetBlockAttrs() != nil:
			rows = append(rows, row(name, "map("+spec.GetBlockAttrs().GetType()+")", value))
		case spec.GetBlockValue() != nil:
			rows = append(rows, row(name, "block", notLiteral)) // its options have the defaults
			rows = append(rows, schemaRows(t, name+".", spec.GetBlockValue().GetNested())...)
		case spec.GetBlockMap() != nil: // its options are those beside it
			rows = append(rows, row(name, "block", notLiteral))
			for option := range spec.GetBlockMap().GetNested().GetObject().GetAttributes() {
				must.MapContainsKey(t, schema.GetObject().GetAttributes(), option)
			}
		case spec.GetBlockList() != nil:
			rows = append(rows, row(name, "blocks", notLiteral))
			rows = append(rows, schemaRows(t, name+".", spec.GetBlockList().GetNested())...)
		case spec.GetAttr() != nil:
			if spec.GetAttr().GetRequired() {
				value = "required"
			}
			rows = append(rows, row(name, kind(spec.GetAttr().GetType()), value))
		default:
			t.Fatalf("option %s: this test does not know its kind of schema", name)
		}
	}
	return rows
}

// kind returns the type of an attribute in README's words.
func kind(schema string) string {
	if schema == "any" { // only command, see words
		return "string or list(string)"
	}
	return schema
}

// documentedDefault returns the literal in a cell that consists only of code.
func documentedDefault(t *testing.T, cell string) string {
	must.NotEq(t, "", cell)
	switch {
	case cell == "required":
		return cell
	case strings.Count(cell, "`") == 2 && strings.HasPrefix(cell, "`") && strings.HasSuffix(cell, "`"):
		return code(t, cell)
	}
	return notLiteral
}

// code returns the text of a cell that is a code span.
func code(t *testing.T, cell string) string {
	text := strings.Trim(cell, "`")
	must.Eq(t, "`"+text+"`", cell)
	return text
}

// tableBelow returns the rows of the first table after a heading of README, which must
// have these columns.
func tableBelow(t *testing.T, heading string, columns ...string) [][]string {
	tables := tables(sectionBelow(t, heading))
	must.SliceNotEmpty(t, tables, must.Sprintf("README.md has no table below %q", heading))
	return rowsOf(t, tables[0], columns)
}

// tablesBelow returns the rows of all tables in the section of a heading, each of which
// must have these columns.
func tablesBelow(t *testing.T, heading string, columns ...string) (rows [][]string) {
	for _, table := range tables(sectionBelow(t, heading)) {
		rows = append(rows, rowsOf(t, table, columns)...)
	}
	must.SliceNotEmpty(t, rows, must.Sprintf("README.md has no table below %q", heading))
	return rows
}

// sectionBelow returns what is between a heading of README and the next one of its level
// or a higher one.
func sectionBelow(t *testing.T, heading string) string {
	_, text, found := strings.Cut(readFile(t, "README.md"), "\n"+heading+"\n")
	must.True(t, found, must.Sprintf("README.md has no %q", heading))
	level := len(heading) - len(strings.TrimLeft(heading, "#"))
	end := regexp.MustCompile(fmt.Sprintf(`(?m)^#{1,%d} `, level)).FindStringIndex(text)
	if end == nil {
		return text
	}
	return text[:end[0]]
}

// tables returns the lines of each table.
func tables(text string) [][]string {
	var found [][]string
	inTable := false
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		isRow := strings.HasPrefix(line, "|")
		switch {
		case isRow && inTable:
			found[len(found)-1] = append(found[len(found)-1], line)
		case isRow:
			found = append(found, []string{line})
		}
		inTable = isRow
	}
	return found
}

// rowsOf splits the lines of a table, and drops its head and the rule below that.
func rowsOf(t *testing.T, table, columns []string) (rows [][]string) {
	must.Eq(t, columns, splitRow(table[0]))
	for _, line := range table[2:] {
		cells := splitRow(line)
		must.SliceLen(t, len(columns), cells)
		rows = append(rows, cells)
	}
	return rows
}

func splitRow(line string) []string {
	cells := strings.Split(strings.Trim(line, "|"), "|")
	for i := range cells {
		cells[i] = strings.TrimSpace(cells[i])
	}
	return cells
}

// captured returns the first groups of all matches, sorted and without repetitions.
func captured(pattern, text string) (groups []string) {
	for _, match := range regexp.MustCompile(pattern).FindAllStringSubmatch(text, -1) {
		groups = append(groups, match[1])
	}
	slices.Sort(groups)
	return slices.Compact(groups)
}

// readFile reads a file of the checkout.
func readFile(t *testing.T, name string) string {
	text, err := os.ReadFile(filepath.Join("..", name))
	must.NoError(t, err)
	return string(text)
}
