package driver

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/shoenig/test/must"

	"nomad-driver-nspawn/driver/job"
	"nomad-driver-nspawn/driver/operator"
)

// README has tables that show what options of systemd-nspawn and of Nomad's docker driver
// correspond to. Both are compared with the other program itself, so that its new options
// are not missed.

// equivalent is README's row about an option of another program. here has options of ours,
// or one of the words always, Nomad and no.
type equivalent struct {
	name, from string
	here       []string
}

func (e equivalent) is(word string) bool { return slices.Equal(e.here, []string{word}) }

func equivalents(t *testing.T, heading string, columns ...string) (list []equivalent) {
	for _, cells := range tableBelow(t, heading, columns...) {
		e := equivalent{name: code(t, cells[0])}
		if len(columns) == 4 {
			e.from = cells[1]
		}
		here, note := cells[len(cells)-2], cells[len(cells)-1]
		e.here = strings.Split(here, ", ")
		for i, name := range e.here {
			if !slices.Contains([]string{"always", "Nomad", "no"}, here) {
				e.here[i] = code(t, name)
				must.SliceContains(t, ownOptions(), e.here[i], must.Sprintf("of %s", e.name))
			}
		}
		must.True(t, note != "" || !e.is("no") && !e.is("Nomad"), must.Sprintf("%s says neither why nor how", e.name))
		list = append(list, e)
	}
	return list
}

func ownOptions() []string {
	return append(keysOf("", job.TaskSchema), keysOf("", operator.ConfigSchema)...)
}

func nspawnOptions(t *testing.T) []equivalent {
	return equivalents(t, "## Options of systemd-nspawn", "Option", "From", "Here", "Note")
}

// TestReadmeNspawn checks that the table has every option that the driver passes to
// systemd-nspawn, and not as one that jobs cannot have.
func TestReadmeNspawn(t *testing.T) {
	files, err := filepath.Glob("job/testdata/spec/*.txtar")
	must.NoError(t, err)
	given := map[string]bool{}
	for _, file := range files {
		_, args, _ := strings.Cut(readFile(t, filepath.Join("driver", file)), "\nsystemd-nspawn\n")
		args, _, _ = strings.Cut(args, "\n--\n")
		for _, option := range captured(`(?m)^(--[a-z0-9-]+)`, args) {
			given[option] = true
		}
	}
	must.MapContainsKeys(t, given, []string{"--keep-unit", "--bind"})
	for _, option := range nspawnOptions(t) {
		must.False(t, given[option.name] && option.is("no"), must.Sprint(option.name))
		delete(given, option.name)
	}
	must.Eq(t, map[string]bool{}, given) // README lacks them
}

// TestReadmeDocker compares the table with the docker driver of the Nomad version in
// go.mod. Every option of docker with the same name here must have a row that says so, and
// every row must be an option of docker.
func TestReadmeDocker(t *testing.T) {
	docker := dockerOptions(t)
	rows := map[string]equivalent{}
	for _, row := range equivalents(t, "## Coming from docker", "Option", "Here", "Note") {
		rows[row.name] = row
		must.SliceContains(t, docker, row.name, must.Sprint("docker has no such option"))
	}
	for _, path := range docker {
		if name, _, nested := strings.Cut(path, "."); !nested {
			must.MapContainsKey(t, rows, name, must.Sprint("README lacks it"))
		}
	}
	var named []string
	for _, path := range keysOf("", job.TaskSchema) {
		name, _, _ := strings.Cut(path, ".")
		if row, ok := rows[name]; ok {
			must.SliceContains(t, docker, path)
			must.SliceContains(t, row.here, name)
			named = append(named, path)
		}
	}
	aliases, ok := reflect.TypeFor[job.TaskConfig]().FieldByName("dockerOptions")
	must.True(t, ok)
	must.SliceContainsSubset(t, named, tagsOf(t, "", aliases.Type))
}

// dockerOptions returns the paths of all task options of the docker driver, in the form
// block.option. It reads them in the driver's source, because importing it would need
// docker.
func dockerOptions(t *testing.T) []string {
	dir, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/hashicorp/nomad").Output()
	must.NoError(t, err)
	file, err := parser.ParseFile(token.NewFileSet(), filepath.Join(strings.TrimSpace(string(dir)), "drivers/docker/config.go"), nil, 0)
	must.NoError(t, err)
	variables := map[string]ast.Expr{}
	ast.Inspect(file, func(node ast.Node) bool {
		if spec, ok := node.(*ast.ValueSpec); ok && len(spec.Values) == len(spec.Names) {
			for i, name := range spec.Names {
				variables[name.Name] = spec.Values[i]
			}
		}
		return true
	})
	options := specKeys(t, variables, "", variables["taskConfigSpec"])
	must.SliceContainsSubset(t, options, []string{"image", "mount.tmpfs_options.size"})
	return options
}

// specKeys returns the keys of the maps in an expression that makes a schema.
func specKeys(t *testing.T, variables map[string]ast.Expr, prefix string, expr ast.Expr) (keys []string) {
	switch e := expr.(type) {
	case *ast.Ident:
		return specKeys(t, variables, prefix, variables[e.Name])
	case *ast.CallExpr:
		for _, arg := range e.Args {
			keys = append(keys, specKeys(t, variables, prefix, arg)...)
		}
	case *ast.CompositeLit:
		for _, element := range e.Elts {
			pair := element.(*ast.KeyValueExpr)
			name, err := strconv.Unquote(pair.Key.(*ast.BasicLit).Value)
			must.NoError(t, err)
			keys = append(append(keys, prefix+name), specKeys(t, variables, prefix+name+".", pair.Value)...)
		}
	}
	return keys
}
