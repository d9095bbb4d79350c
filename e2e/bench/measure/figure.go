package main

import (
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"
)

// report prints figures as they arrive and records the missed targets.
type report struct {
	out    io.Writer
	missed []string
}

// target returns the maximum for the median of a figure.
func target(name string) (most float64, ok bool) {
	switch name {
	case "start_ratio", "start_cow_ratio":
		return 1.25, true
	case "start_image_size_ratio", "start_mounts_ratio":
		return 1.15, true
	case "pull_parallel_downloads", "unpack_ratio":
		return 1, true
	case "pull_parallel_ratio":
		return 2, true
	case "exec_task", "exec_streaming":
		return 30, true
	case "plugin_rss_idle":
		return 35, true
	case "extra_processes":
		return 0, true
	}
	return 0, false
}

// add prints a line: name, median, minimum, maximum, unit.
func (r *report) add(name, unit string, values ...float64) error {
	if len(values) == 0 {
		return fmt.Errorf("report %s: nothing was measured", name)
	}
	middle := median(values)
	_, err := fmt.Fprintln(r.out, name, number(middle), number(slices.Min(values)), number(slices.Max(values)), unit)
	if err != nil {
		return fmt.Errorf("report %s: %w", name, err)
	}
	if most, ok := target(name); ok && middle > most {
		r.missed = append(r.missed, fmt.Sprintf("%s is %s %s, the target is %s", name, number(middle), unit, number(most)))
	}
	return nil
}

func median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	half := len(sorted) / 2
	if len(sorted)%2 == 1 {
		return sorted[half]
	}
	return (sorted[half-1] + sorted[half]) / 2
}

// number formats a value with at most two decimals.
func number(value float64) string {
	return strconv.FormatFloat(math.Round(value*100)/100, 'f', -1, 64)
}
