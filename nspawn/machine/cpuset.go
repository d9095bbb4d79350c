package machine

import (
	"fmt"
	"strconv"
	"strings"
)

// ParseCPUs parses a list of cores and ranges such as "0,2-3", the format of cpuset.cpus
// (cgroup-v2.rst).
func ParseCPUs(list string) ([]int, error) {
	var cpus []int
	for part := range strings.SplitSeq(list, ",") {
		from, to, isRange := strings.Cut(strings.TrimSpace(part), "-")
		first, err := strconv.Atoi(from)
		if err != nil {
			return nil, fmt.Errorf("parse cores %q: %w", list, err)
		}
		last := first
		if isRange {
			if last, err = strconv.Atoi(to); err != nil {
				return nil, fmt.Errorf("parse cores %q: %w", list, err)
			}
		}
		if first < 0 || last < first || last > maxCPU {
			return nil, fmt.Errorf("parse cores %q: range %q is not ascending below %d", list, part, maxCPU)
		}
		for cpu := first; cpu <= last; cpu++ {
			cpus = append(cpus, cpu)
		}
	}
	return cpus, nil
}

// maxCPU is systemd's own limit for the number of CPUs (cpu-set-util.c).
const maxCPU = 8191

// cpuMask returns the value of AllowedCPUs= on the bus: one bit for each core, the lowest
// core first.
func cpuMask(list []int) []byte {
	var mask []byte
	for _, cpu := range list {
		for len(mask) <= cpu/8 {
			mask = append(mask, 0)
		}
		mask[cpu/8] |= 1 << (cpu % 8)
	}
	return mask
}
