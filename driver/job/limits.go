package job

import (
	"maps"
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/hashicorp/nomad/plugins/drivers"

	"nomad-driver-nspawn/driver/schema"
	"nomad-driver-nspawn/nspawn/machine"
)

// limitOptions limit what a task may use, in addition to its `resources` block.
type limitOptions struct {
	CPUCFSPeriod     int64             `codec:"cpu_cfs_period"`
	CPUHardLimit     bool              `codec:"cpu_hard_limit"`
	MemorySwap       string            `codec:"memory_swap"`
	MemorySwappiness *int64            `codec:"memory_swappiness"`
	OOMScoreAdj      *int              `codec:"oom_score_adj"`
	PidsLimit        int64             `codec:"pids_limit"`
	Ulimit           map[string]string `codec:"ulimit"`
}

var limitSchema = schema.Options{
	"cpu_cfs_period":    schema.Attr("cpu_cfs_period", "number"),
	"cpu_hard_limit":    schema.Attr("cpu_hard_limit", "bool"),
	"memory_swap":       schema.Attr("memory_swap", "string"),
	"memory_swappiness": schema.Attr("memory_swappiness", "number"),
	"oom_score_adj":     schema.Attr("oom_score_adj", "number"),
	"pids_limit":        schema.Attr("pids_limit", "number"),
	"ulimit":            schema.StringMap("ulimit"),
}

// unlimitedSwap is the value of memory_swap that removes the limit, as in docker.
const unlimitedSwap = "-1"

func (c TaskConfig) validateLimits() error {
	var found schema.Mistakes
	// The limits of the kernel (cpu.max in cgroup-v2.rst) in microseconds.
	if c.CPUCFSPeriod != 0 {
		found.Unless(c.CPUCFSPeriod >= 1000 && c.CPUCFSPeriod <= 1000000, "cpu_cfs_period: %d is not between 1000 and 1000000 microseconds", c.CPUCFSPeriod)
		found.Unless(c.CPUHardLimit, "cpu_cfs_period: needs cpu_hard_limit = true")
	}
	if c.MemorySwap != "" && c.MemorySwap != unlimitedSwap {
		found.Add(schema.CheckSize("memory_swap", c.MemorySwap, "512MB"))
	}
	found.Unless(c.MemorySwappiness == nil, "memory_swappiness: version 2 of control groups has none; memory_swap limits how much is swapped")
	if adjust := c.OOMScoreAdj; adjust != nil {
		found.Unless(*adjust >= -1000 && *adjust <= 1000, "oom_score_adj: %d is not between -1000 and 1000", *adjust)
	}
	if c.PidsLimit != 0 {
		found.Add(schema.CheckPids("pids_limit", c.PidsLimit))
	}
	seen := map[string]string{}
	for _, option := range slices.Sorted(maps.Keys(c.Ulimit)) {
		name, _, err := ulimit(option, c.Ulimit[option])
		found.Add(err)
		found.Unless(seen[name] == "", "ulimit.%s: is there already, as %s", option, seen[name])
		seen[name] = option
	}
	return found.Err()
}

func (c TaskConfig) applyLimits(in Input, spec *machine.Spec) error {
	var found schema.Mistakes
	limits := &spec.Limits
	found.Add(applyResources(in.Task.Resources, limits), in.controller("cpu", "cpu_hard_limit", c.CPUHardLimit))
	found.Add(c.applyMemorySwap(in, limits))
	if c.CPUHardLimit {
		limits.CPUQuota, limits.CPUPeriod = cpuQuota(in), time.Duration(c.CPUCFSPeriod)*time.Microsecond
	}
	if limits.OOMScoreAdjust = c.OOMScoreAdj; c.OOMScoreAdj != nil && *c.OOMScoreAdj < 0 {
		found.Add(in.Policy.OOMScore())
	}
	pids, err := in.Policy.Pids(c.PidsLimit)
	found.Add(err, in.controller("pids", "pids_limit", c.PidsLimit > 0))
	limits.Pids = pids
	for name, value := range c.Ulimit {
		if limits.Resources == nil {
			limits.Resources = map[string]machine.ResourceLimit{}
		}
		resource, limit, _ := ulimit(name, value)
		limits.Resources[resource] = limit
		found.Unless(resource != "NOFILE" || limit.Hard <= in.MaxFiles, "ulimit.%s: %q is more than the %d files that the kernel of this client allows (sysctl fs.nr_open)", name, value, in.MaxFiles)
	}
	return found.Err()
}

// controller returns an error if an option is used whose controller is missing, or not
// enabled, in the kernel of this client.
func (in Input) controller(name, option string, used bool) error {
	var found schema.Mistakes
	found.Unless(!used || slices.Contains(in.Controllers, name),
		"%s: cannot be enforced on this client: its kernel has no %q controller of control groups, version 2", option, name)
	return found.Err()
}

// applyMemorySwap sets the limit of swap. As in docker, memory_swap is the sum of memory
// and swap.
func (c TaskConfig) applyMemorySwap(in Input, limits *machine.Limits) error {
	if c.MemorySwap == "" {
		return nil
	}
	var found schema.Mistakes
	found.Add(in.controller("memory", "memory_swap", true))
	switch total := schema.Bytes(c.MemorySwap); {
	case limits.MemoryMax == 0:
		found.Refuse("memory_swap: the task's memory has no limit that swap could be beside")
	case c.MemorySwap == unlimitedSwap:
		limits.MemorySwap = machine.NoLimit
	case total < limits.MemoryMax:
		found.Refuse("memory_swap: %q is less than the task's memory, which is a part of it", c.MemorySwap)
	default:
		limits.MemorySwap = total - limits.MemoryMax
	}
	return found.Err()
}

// cpuQuota returns the CPU time per second that is the task's share of the client.
func cpuQuota(in Input) time.Duration {
	if in.Task.Resources == nil || in.Task.Resources.LinuxResources == nil {
		return 0
	}
	share := in.Task.Resources.LinuxResources.PercentTicks * float64(in.Cores)
	return max(time.Duration(share*float64(time.Second)), time.Millisecond)
}

// resourceNames matches the resources of setrlimit(2).
var resourceNames = regexp.MustCompile(`^(AS|CORE|CPU|DATA|FSIZE|LOCKS|MEMLOCK|MSGQUEUE|NICE|NOFILE|NPROC|RSS|RTPRIO|RTTIME|SIGPENDING|STACK)$`)

// ulimit parses an entry in docker's form: nofile = "1024:4096", or one number for both.
func ulimit(option, value string) (name string, limit machine.ResourceLimit, err error) {
	var found schema.Mistakes
	at := "ulimit." + option
	name = strings.TrimPrefix(strings.ToUpper(option), "RLIMIT_")
	found.Unless(resourceNames.MatchString(name), "%s: setrlimit(2) knows no such limit", at)
	soft, hard, both := strings.Cut(value, ":")
	if !both {
		hard = soft
	}
	var softErr, hardErr error
	limit.Soft, softErr = limitNumber(soft)
	limit.Hard, hardErr = limitNumber(hard)
	found.Unless(softErr == nil && hardErr == nil, "%s: %q is not SOFT:HARD or a number for both, as 1024:4096", at, value)
	found.Unless(limit.Soft <= limit.Hard, "%s: %q has a soft limit above the hard one", at, value)
	return name, limit, found.Err()
}

func limitNumber(text string) (uint64, error) {
	if text == "-1" || text == "unlimited" {
		return machine.NoLimit, nil
	}
	return strconv.ParseUint(text, 10, 64)
}

// applyResources applies the task's `resources` block. memory is a hard limit, unless
// memory_max is set. Then memory_max is the hard limit, and memory is what the kernel
// leaves to the task under pressure, as in docker.
func applyResources(resources *drivers.Resources, limits *machine.Limits) error {
	if resources == nil {
		return nil
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
	cpus, err := machine.ParseCPUs(linux.CpusetCpus)
	limits.AllowedCPUs = cpus
	return err
}

const mebibyte = 1 << 20

// memoryLimits converts MiB. A maximum of -1 means no limit. A maximum below the
// reservation is ignored: Nomad adds the size of the secrets directory to an unset maximum
// (nomad/scheduler/feasible/rank.go, 1.11).
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

// cpuWeight converts shares (Nomad's MHz) to a weight of cgroup v2 in such a way that 1024
// shares are the default weight of 100, like runc and docker (opencontainers/cgroups,
// ConvertCPUSharesToCgroupV2Value).
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
