package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"nomad-driver-nspawn/e2e/host"
)

// testTimeout is the limit for the tests of one package.
const testTimeout = 10 * time.Minute

// testPackage is a package with tests. Its test binary is NAME.test, and it runs in the
// directory NAME.
type testPackage struct{ path, dir, name string }

// buildTests builds the test binaries of the packages that have tests into dir. They are
// static, because the virtual machine's libc may be older than ours. They do not use the
// race detector, which is too slow when emulated.
func buildTests(ctx context.Context, dir string, patterns []string) ([]testPackage, error) {
	format := "{{if or .TestGoFiles .XTestGoFiles}}{{.ImportPath}}\t{{.Dir}}\t{{.Module.Dir}}{{end}}"
	out, err := goTool(ctx, append([]string{"list", "-f", format}, patterns...)...)
	if err != nil {
		return nil, err
	}
	var packages []testPackage
	var shim []string
	for line := range strings.Lines(out) {
		fields := strings.Split(strings.TrimSpace(line), "\t")
		p := testPackage{fields[0], fields[1], fmt.Sprint(len(packages))}
		progress("building the tests of %s…", p.path)
		if shim == nil {
			if shim, err = host.BuildShim(ctx, filepath.Dir(dir), fields[2]); err != nil {
				return nil, err
			}
		}
		binary := filepath.Join(dir, p.name+".test")
		build := append([]string{"test", "-c", "-ldflags=-s -w", "-o", binary}, shim...)
		if _, err := goTool(ctx, append(build, p.path)...); err != nil {
			return nil, err
		}
		if err := p.copyData(ctx, filepath.Join(dir, p.name)); err != nil {
			return nil, err
		}
		packages = append(packages, p)
	}
	if len(packages) == 0 {
		return nil, errors.New("test: none of the packages has tests")
	}
	return packages, nil
}

// copyData creates the directory in which the tests run, with the package's testdata.
func (p testPackage) copyData(ctx context.Context, dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	data := filepath.Join(p.dir, "testdata")
	if _, err := os.Stat(data); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return run(ctx, "cp", "-a", data, dir)
}

func goTool(ctx context.Context, args ...string) (string, error) {
	cmd := command(ctx, "go", args...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("go %s: %w", args[0], err)
	}
	return string(out), nil
}

// The script prints a mark and a word before and after the tests of a package. No test
// prints the control character of the mark.
const (
	beginMark = "\x1ebegin "
	endMark   = "\x1eend "
)

// writeScript writes the script that the virtual machine runs, with the script's directory
// as the current directory.
func writeScript(dir string, packages []testPackage, match string) error {
	script := strings.Builder{}
	for _, p := range packages {
		fmt.Fprintf(&script, "echo '%s%s'\n", beginMark, p.path)
		fmt.Fprintf(&script, "(cd %s && exec ../%s.test -test.v -test.timeout %s -test.run %s)\n",
			p.name, p.name, testTimeout, quote(match))
		fmt.Fprintf(&script, "echo \"%s$?\"\n", endMark)
	}
	return os.WriteFile(filepath.Join(dir, "run"), []byte(script.String()), 0o644)
}

// quote quotes a word for the shell.
func quote(word string) string {
	return "'" + strings.ReplaceAll(word, "'", `'\''`) + "'"
}
