package main

import (
	"context"
	"fmt"
	"time"
)

// warmUp is how many rounds are not counted: caches fill, the plugin connects.
const warmUp = 3

// way is one of several ways to do the same.
type way struct {
	name string
	run  func(context.Context) (sample, error)

	calls, firsts []float64 // ms
}

// sample is one measurement. Either may be zero, where it is not of interest.
type sample struct {
	call  time.Duration // until the call returned
	first time.Duration // until the first instruction of the payload
}

// takeTurns runs all ways once a round, each round in another order. Samples of
// one round are pairs: whatever else the machine did weighs on all of them.
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

// ratios are those of pairs.
func ratios(values, bases []float64) []float64 {
	quotients := make([]float64, len(values))
	for i := range values {
		quotients[i] = values[i] / bases[i]
	}
	return quotients
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
