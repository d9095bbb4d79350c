package job

import (
	"fmt"
	"math"

	"nomad-driver-nspawn/nspawn/machine"
)

type limitOptions struct {
	PidsLimit int64 `codec:"pids_limit"`
}

var limitSchema = options{"pids_limit": attr("pids_limit", "number")}

const (
	maxPids = 16384 // the limit of systemd-nspawn@.service
	minPids = 16    // the least with which a machine comes up
)

func (c TaskConfig) validateLimits() error {
	if c.PidsLimit != 0 && c.PidsLimit < minPids {
		return fmt.Errorf("pids_limit: want %d or more", minPids)
	}
	return nil
}

// applyLimits sets the task's resources. memory is a hard limit unless memory_max
// is: then it is what the kernel leaves the task under pressure, as with docker.
func (c TaskConfig) applyLimits(in Input, spec *machine.Spec) error {
	limits, resources := &spec.Limits, in.Task.Resources
	var err error
	if limits.Pids, err = in.Policy.Pids(c.PidsLimit); err != nil || resources == nil {
		return err
	}
	if nomad := resources.NomadResources; nomad != nil {
		limits.MemoryMax, limits.MemoryLow = memoryLimits(nomad.Memory.MemoryMB, nomad.Memory.MemoryMaxMB)
	}
	linux := resources.LinuxResources
	if linux == nil {
		return nil
	}
	limits.CPUWeight = cpuWeight(linux.CPUShares)
	if linux.CpusetCpus == "" {
		return nil
	}
	limits.AllowedCPUs, err = machine.ParseCPUs(linux.CpusetCpus)
	return err
}

// memoryLimits takes MiB. A maximum of -1 is no limit; one below the
// reservation is not meant: Nomad adds the size of the secrets directory to an
// unset maximum (nomad/scheduler/feasible/rank.go, 1.11).
func memoryLimits(memory, maximum int64) (limit, low uint64) {
	memory = max(memory, 0)
	switch {
	case maximum == -1:
		return 0, uint64(memory) * mebibyte
	case maximum > memory:
		return uint64(maximum) * mebibyte, uint64(memory) * mebibyte
	}
	return uint64(memory) * mebibyte, 0
}

// cpuWeight converts shares (Nomad's MHz) to a weight of cgroup v2, so that
// 1024 shares are the default weight of 100, as runc and docker do
// (opencontainers/cgroups, ConvertCPUSharesToCgroupV2Value).
func cpuWeight(shares int64) uint64 {
	const minShares, maxShares, maxWeight = 2, 262144, 10000
	switch {
	case shares <= 0:
		return 0
	case shares <= minShares:
		return 1
	case shares >= maxShares:
		return maxWeight
	}
	l := math.Log2(float64(shares))
	return uint64(math.Ceil(math.Pow(10, (l*l+125*l)/612.0-7.0/34.0)))
}
