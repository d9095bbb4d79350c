package machine

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"slices"
	"time"

	"nomad-driver-nspawn/nspawn/systemd"
)

// NoLimit is the value of a limit that is removed.
const NoLimit = math.MaxUint64

// Limits bound what the machine may use. Zero values set no limit.
type Limits struct {
	MemoryMax   uint64 // bytes
	MemoryLow   uint64 // bytes that are protected from reclaim
	MemorySwap  uint64 // bytes of swap in addition to MemoryMax; NoLimit allows all of it
	CPUWeight   uint64 // 1 to 10000, see systemd.resource-control(5)
	AllowedCPUs []int  // cores; none means all
	// CPUQuota is the CPU time that the machine may use per second, summed over all
	// cores. CPUPeriod is the period over which the kernel enforces it; zero leaves
	// the default.
	CPUQuota, CPUPeriod time.Duration
	Pids                uint64 // processes and threads; 0 is maxTasks
	IO                  IOLimits
	// OOMScoreAdjust, -1000 to 1000, influences which processes the kernel kills first
	// when the host runs out of memory. nil selects systemd's default.
	OOMScoreAdjust *int
	// Resources are limits of setrlimit(2), by name without RLIMIT_.
	Resources map[string]ResourceLimit
}

// IOLimits are limits on block devices. A device is named by its node, or by any path on
// a file system of the device.
type IOLimits struct {
	Weight                uint64 // 1 to 10000
	ReadBytes, WriteBytes map[string]uint64
	ReadOps, WriteOps     map[string]uint64
}

// ResourceLimit is a limit of setrlimit(2). NoLimit removes it.
type ResourceLimit struct{ Soft, Hard uint64 }

// maxTasks is the default limit, the same as in systemd-nspawn@.service.
const maxTasks = 16384

type deviceLimit struct {
	Path  string
	Limit uint64
}

func (l Limits) args() (args []string) {
	for _, name := range slices.Sorted(maps.Keys(l.Resources)) {
		limit := l.Resources[name]
		args = append(args, "--rlimit=RLIMIT_"+name+"="+limitText(limit.Soft)+":"+limitText(limit.Hard))
	}
	return args
}

func limitText(value uint64) string {
	if value == NoLimit {
		return "infinity"
	}
	return fmt.Sprint(value)
}

func (l Limits) properties() []systemd.Property {
	props := []systemd.Property{systemd.NewProperty("TasksMax", cmp.Or(l.Pids, maxTasks))}
	add := func(name string, value any) { props = append(props, systemd.NewProperty(name, value)) }
	if l.MemoryMax > 0 {
		// The job gets no swap beside its memory unless it asks for some, as with docker.
		// Otherwise the memory limit would not limit anything.
		add("MemoryMax", l.MemoryMax)
		add("MemorySwapMax", l.MemorySwap)
	}
	if l.MemoryLow > 0 {
		add("MemoryLow", l.MemoryLow)
	}
	if l.CPUWeight > 0 {
		add("CPUWeight", l.CPUWeight)
	}
	if len(l.AllowedCPUs) > 0 {
		add("AllowedCPUs", cpuMask(l.AllowedCPUs))
	}
	if l.OOMScoreAdjust != nil {
		// nspawn's own --oom-score-adjust= fails in a user namespace (systemd 252).
		add("OOMScoreAdjust", int32(*l.OOMScoreAdjust))
	}
	if l.CPUQuota > 0 {
		add("CPUQuotaPerSecUSec", uint64(l.CPUQuota.Microseconds()))
		if l.CPUPeriod > 0 {
			add("CPUQuotaPeriodUSec", uint64(l.CPUPeriod.Microseconds()))
		}
	}
	return slices.Concat(props, l.resourceProperties(), l.IO.properties())
}

// slice returns the slice of the machine's unit.
func (l Limits) slice() string {
	if len(l.AllowedCPUs) > 0 {
		return Slice
	}
	return ShareSlice
}

// ShareProperties returns the properties of ShareSlice if its machines may use the given
// cores.
func ShareProperties(cpus []int) []systemd.Property {
	return []systemd.Property{systemd.NewProperty("AllowedCPUs", cpuMask(cpus))}
}

// enoughFiles is more than systemd-nspawn itself opens.
const enoughFiles = 65536

// resourceProperties raises the limits of nspawn itself. nspawn can only pass on limits
// that it has: its --rlimit= silently skips the others.
func (l Limits) resourceProperties() (props []systemd.Property) {
	for _, name := range slices.Sorted(maps.Keys(l.Resources)) {
		own := uint64(NoLimit)
		if name == "NOFILE" { // the kernel has a maximum for this one (fs.nr_open)
			own = max(l.Resources[name].Hard, enoughFiles)
		}
		props = append(props, systemd.NewProperty("Limit"+name, own))
	}
	return props
}

func (l IOLimits) properties() (props []systemd.Property) {
	if l.Weight > 0 {
		props = append(props, systemd.NewProperty("IOWeight", l.Weight))
	}
	for _, limit := range []struct {
		property string
		devices  map[string]uint64
	}{
		{"IOReadBandwidthMax", l.ReadBytes},
		{"IOWriteBandwidthMax", l.WriteBytes},
		{"IOReadIOPSMax", l.ReadOps},
		{"IOWriteIOPSMax", l.WriteOps},
	} {
		var list []deviceLimit
		for _, path := range slices.Sorted(maps.Keys(limit.devices)) {
			list = append(list, deviceLimit{Path: path, Limit: limit.devices[path]})
		}
		if list != nil {
			props = append(props, systemd.NewProperty(limit.property, list))
		}
	}
	return props
}
