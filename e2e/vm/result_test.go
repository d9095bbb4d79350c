package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/shoenig/test/must"
)

// TestScript lets a shell run the script with scripts as test binaries, and checks the
// counts.
func TestScript(t *testing.T) {
	const good = "echo '--- PASS: TestVMOne (0.00s)'\necho '    --- SKIP: TestVMOne/x (0.00s)'"
	for name, c := range map[string]struct {
		binaries []string
		want     result
		verdict  string
		output   string
	}{
		"good":    {[]string{"echo '--- PASS: TestVMOne'"}, result{passed: 1, finished: 1}, "", "--- PASS: TestVMOne\nok  \tp0\tT\n"},
		"skipped": {[]string{good}, result{passed: 1, skipped: 1, finished: 1}, "tests were skipped", "ok  \tp0"},
		"failed": {
			[]string{"echo '--- FAIL: TestVMOne (0.00s)'; exit 1", "echo '--- PASS: TestVMTwo (1.00s)'"},
			result{passed: 1, failed: 1, finished: 2},
			"tests failed", "FAIL\tp0",
		},
		"panicked":    {[]string{good, "echo panic: oh; exit 2"}, result{passed: 1, failed: 1, skipped: 1, finished: 2}, "tests failed", "panic: oh\nFAIL\tp1"},
		"none":        {[]string{"echo PASS"}, result{finished: 1}, "no test was run", "PASS\nok  \tp0"},
		"no line end": {[]string{"printf 'PASS: no'"}, result{finished: 1}, "no test was run", "PASS: nook  \tp0"},
		"arguments":   {[]string{`printf '<%s>' "$@"; pwd`}, result{finished: 1}, "no test was run", "<-test.run><^it's $HOME>"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			var packages []testPackage
			for i, binary := range c.binaries {
				name := string(rune('0' + i))
				packages = append(packages, testPackage{path: "p" + name, name: name})
				must.NoError(t, os.WriteFile(filepath.Join(dir, name+".test"), []byte("#!/bin/sh\n"+binary+"\n"), 0o755))
				must.NoError(t, os.Mkdir(filepath.Join(dir, name), 0o755))
			}
			must.NoError(t, writeScript(dir, packages, "^it's $HOME"))
			script := exec.Command("sh", "run")
			script.Dir = dir
			raw, err := script.Output()
			must.NoError(t, err)

			got, output, began := result{}, strings.Builder{}, 0
			must.NoError(t, got.follow(iotest.OneByteReader(strings.NewReader(string(raw))), &output, func() { began++ }))
			must.Eq(t, c.want, got)
			must.EqOp(t, 1, began)
			took := regexp.MustCompile(`\d+\.\d+s\n`)
			must.StrContains(t, took.ReplaceAllString(output.String(), "T\n"), c.output)
			must.StrNotContains(t, output.String(), "\x1e")
			if c.verdict == "" {
				must.NoError(t, got.verdict())
			} else {
				must.EqError(t, got.verdict(), c.verdict)
			}
		})
	}
}
