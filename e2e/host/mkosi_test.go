package host

import (
	"os"
	"testing"

	"github.com/shoenig/test/must"
)

// TestReadmeHasMkosiRecipe checks that README shows the recipe that the tests use.
func TestReadmeHasMkosiRecipe(t *testing.T) {
	readme, err := os.ReadFile("../../README.md")
	must.NoError(t, err)
	must.StrContains(t, string(readme), "```ini\n"+mkosiConf+"```\n")
}
