package job

import (
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/shoenig/test/must"
)

// TestPure checks that neither this package nor those that it is made with import a
// package that reads or changes the host.
func TestPure(t *testing.T) {
	out, err := exec.Command("go", "list", "-f", `{{join .Imports " "}}`, ".", "../operator", "../schema").Output()
	must.NoError(t, err)
	imports := strings.Fields(string(out))
	must.SliceContains(t, imports, "fmt")
	for _, path := range []string{"context", "io", "io/fs", "net", "net/http", "os", "os/exec", "syscall", "golang.org/x/sys/unix"} {
		must.False(t, slices.Contains(imports, path), must.Sprint(path))
	}
}
