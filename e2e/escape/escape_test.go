package escape

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"strings"
	"testing"

	"github.com/shoenig/test/must"
)

// TestAttempts checks that the tests of each attempt exist, or that it was made by hand.
func TestAttempts(t *testing.T) {
	tests := functions(t, "../..")
	seen := map[string]bool{}
	for _, attempt := range Attempts {
		must.False(t, seen[attempt.What], must.Sprint(attempt.What))
		seen[attempt.What] = true
		for _, name := range attempt.Tests {
			must.MapContainsKey(t, tests, name, must.Sprint(attempt.What))
		}
		if len(attempt.Tests) == 0 || attempt.Outcome == Open {
			must.NotEq(t, "", attempt.Note, must.Sprint(attempt.What))
		}
	}
}

// functions returns the names of the functions in all test files below a directory.
func functions(t *testing.T, dir string) map[string]bool {
	found := map[string]bool{}
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		for _, decl := range file.Decls {
			if function, ok := decl.(*ast.FuncDecl); ok && function.Recv == nil {
				found[function.Name.Name] = true
			}
		}
		return nil
	})
	must.NoError(t, err)
	return found
}
