package main

import (
	"strings"
	"testing"

	"github.com/shoenig/test/must"
)

func TestReportAdd(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name   string
		values []float64
		line   string
		missed bool
	}{
		{"start_ratio", []float64{1.5, 1, 1.25}, "start_ratio 1.25 1 1.5 x\n", false},
		{"start_ratio", []float64{1.5, 1, 1.26}, "start_ratio 1.26 1 1.5 x\n", true},
		{"other", []float64{100, 1, 2, 3.005}, "other 2.5 1 100 x\n", false},
		{"extra_processes", []float64{0, 0, 1}, "extra_processes 0 0 1 x\n", false},
		{"extra_processes", []float64{1}, "extra_processes 1 1 1 x\n", true},
	} {
		var out strings.Builder
		r := report{out: &out}
		must.NoError(t, r.add(test.name, "x", test.values...))
		must.EqOp(t, test.line, out.String())
		must.EqOp(t, test.missed, len(r.missed) > 0)
	}
	must.Error(t, (&report{}).add("nothing", "x"))
}

func TestMedianLeavesItsInputAlone(t *testing.T) {
	t.Parallel()
	values := []float64{3, 1, 2}
	must.EqOp(t, 2, median(values))
	must.Eq(t, []float64{3, 1, 2}, values)
}
