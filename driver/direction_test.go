package driver

import (
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/shoenig/test/must"
)

const module = "nomad-driver-nspawn"

// TestDirection checks which package may import which: main imports driver, driver imports
// nspawn, and nspawn imports the packages below it. Only driver knows Nomad, its HCL and
// its logs.
func TestDirection(t *testing.T) {
	packages := dependencies(t)
	must.MapContainsKeys(t, packages, []string{module, module + "/driver", module + "/nspawn", module + "/nspawn/systemd"})
	for path, imports := range packages {
		for _, imported := range imports {
			why := must.Sprintf("%s imports %s", path, imported)
			if below(path, "nspawn") {
				must.False(t, strings.HasPrefix(imported, "github.com/hashicorp/"), why)
				must.True(t, !below(imported, "") || below(imported, "nspawn"), why)
				must.NotEq(t, module+"/nspawn", imported, why)
			}
			if below(path, "driver") && path != module+"/driver" {
				must.NotEq(t, module+"/driver", imported, why)
			}
			if path == module { // the plugin
				must.False(t, below(imported, "e2e"), why)
			}
		}
	}
}

// below reports whether a package is in a folder of the module, or below it.
func below(path, folder string) bool {
	return strings.HasPrefix(path+"/", strings.TrimSuffix(module+"/"+folder, "/")+"/")
}

// dependencies returns the module's packages with everything that they import, directly or
// indirectly, except what only their tests import.
func dependencies(t *testing.T) map[string][]string {
	_, err := os.Stat("../main.go") // otherwise go test might use a cached result
	must.NoError(t, err)
	out, err := exec.Command("go", "list", "-f", `{{.ImportPath}} {{join .Deps " "}}`, module+"/...").Output()
	must.NoError(t, err)
	packages := map[string][]string{}
	for line := range strings.Lines(string(out)) {
		fields := strings.Fields(line)
		packages[fields[0]] = fields[1:]
	}
	return packages
}
