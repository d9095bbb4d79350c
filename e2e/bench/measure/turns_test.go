package main

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/shoenig/test/must"
)

func TestTakeTurns(t *testing.T) {
	t.Parallel()
	var order string
	newWay := func(name string) *way {
		return &way{name: name, run: func(context.Context) (sample, error) {
			order += name
			return sample{call: time.Duration(len(order)) * time.Millisecond, first: time.Second}, nil
		}}
	}
	a, b := newWay("a"), newWay("b")
	must.NoError(t, takeTurns(t.Context(), 2, a, b))
	must.EqOp(t, "abbaabbaab", order) // three rounds to warm up, two that are counted
	must.Eq(t, []float64{8, 9}, a.calls)
	must.Eq(t, []float64{7, 10}, b.calls)
	must.Eq(t, []float64{1000, 1000}, b.firsts)
}

func TestTakeTurnsNamesWhatFailed(t *testing.T) {
	t.Parallel()
	broken := errors.New("broken")
	err := takeTurns(t.Context(), 1, &way{name: "start_bare", run: func(context.Context) (sample, error) {
		return sample{}, broken
	}})
	must.ErrorIs(t, err, broken)
	must.ErrorContains(t, err, "start_bare")
}

func TestRatios(t *testing.T) {
	t.Parallel()
	must.Eq(t, []float64{2, 0.5}, ratios([]float64{4, 1}, []float64{2, 2}))
}
