package host

import (
	"os"
	"testing"

	"github.com/shoenig/test/must"
)

// What README tells to do is what tests run.
func TestReadmeHasMkosiRecipe(t *testing.T) {
	readme, err := os.ReadFile("../../README.md")
	must.NoError(t, err)
	must.StrContains(t, string(readme), "```ini\n"+mkosiConf+"```\n")
}
