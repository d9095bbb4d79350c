package main

import (
	"context"
	"fmt"
	"time"
)

// warmUp is the number of rounds that are not counted, in which caches fill and the plugin
// connects.
const warmUp = 3

// way is one of several ways to do the same task.
type way struct {
	name string
	run  func(context.Context) (sample, error)

	calls, firsts []float64 // ms
}

// sample is one measurement. A value is zero if it is not of interest.
type sample struct {
	call  time.Duration // until the call returned
	first time.Duration // until the first instruction of the payload
}

// takeTurns runs all ways once per round, each round in another order. The samples of a
// round form a pair: other load of the machine affects both alike.
func takeTurns(ctx context.Context, runs int, ways ...*way) error {
	return takeTurnsAfter(ctx, warmUp, runs, ways...)
}

func takeTurnsAfter(ctx context.Context, warmUp, runs int, ways ...*way) error {
	for round := range warmUp + runs {
		for i := range ways {
			w := ways[(i+round)%len(ways)]
			s, err := w.run(ctx)
			if err != nil {
				return fmt.Errorf("%s: %w", w.name, err)
			}
			if round >= warmUp {
				w.calls = append(w.calls, milliseconds(s.call))
				w.firsts = append(w.firsts, milliseconds(s.first))
			}
		}
	}
	return nil
}

// ratios returns the ratios of pairs.
func ratios(values, bases []float64) []float64 {
	quotients := make([]float64, len(values))
	for i := range values {
		quotients[i] = values[i] / bases[i]
	}
	return quotients
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
