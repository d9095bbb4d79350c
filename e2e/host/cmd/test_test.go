package main

import (
	"strings"
	"testing"

	"github.com/shoenig/test/must"
)

func TestTally(t *testing.T) {
	for out, want := range map[string]struct {
		tally tally
		fails bool
	}{
		"":                              {tally{}, true},
		"PASS\n":                        {tally{}, true}, // no test ran
		"--- PASS: TestHostA (0.00s)":   {tally{passed: 1}, false},
		"x\n--- SKIP: TestHostA (0s)\n": {tally{skipped: 1}, true},
		"--- PASS: TestHostA (0.00s)\n    --- PASS: TestHostA/sub (0.00s)\n--- FAIL: TestHostB (0.00s)\n": {tally{passed: 2, failed: 1}, true},
		"--- PASS: TestHostA (0.00s)\n    --- SKIP: TestHostA/sub (0.00s)\n":                              {tally{passed: 1, skipped: 1}, true},
		"log: --- FAIL: not a result\n--- PASS: TestHostA (0.00s)\n":                                      {tally{passed: 1}, false},
	} {
		got := tally{}
		must.NoError(t, got.count(strings.NewReader(out)))
		must.EqOp(t, want.tally, got, must.Sprint(out))
		must.EqOp(t, want.fails, got.verdict() != nil, must.Sprint(out))
	}
}

func TestAfterDashes(t *testing.T) {
	before, command, err := afterDashes([]string{"web", "--", "ls", "--", "-l"}, 1)
	must.NoError(t, err)
	must.Eq(t, []string{"web"}, before)
	must.Eq(t, []string{"ls", "--", "-l"}, command)
	for _, args := range [][]string{nil, {"web"}, {"web", "--"}, {"web", "ls"}, {"a", "b", "--", "ls"}} {
		_, _, err := afterDashes(args, 1)
		must.Error(t, err)
	}
}
