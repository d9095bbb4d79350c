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

// NoLimit is the value of a limit that is lifted.
const NoLimit = math.MaxUint64

// Limits bound what the machine may use. Zero values set no limit.
type Limits struct {
	MemoryMax   uint64 // bytes
	MemoryLow   uint64 // bytes that are protected from reclaim
	MemorySwap  uint64 // bytes of swap beside MemoryMax; NoLimit is all there is
	CPUWeight   uint64 // 1 to 10000, see systemd.resource-control(5)
	AllowedCPUs []int  // cores; none means all
	// CPUQuota is how much CPU time the machine gets in a second, of all cores
	// together. CPUPeriod is how often the kernel counts; zero is its own choice.
	CPUQuota, CPUPeriod time.Duration
	Pids                uint64 // processes and threads; 0 is maxTasks
	IO                  IOLimits
	// OOMScoreAdjust says whom the kernel kills first if the host has no memory
	// left, -1000 to 1000. With nil it is systemd's own.
	OOMScoreAdjust *int
	// Resources are those of setrlimit(2), by name without RLIMIT_.
	Resources map[string]ResourceLimit
}

// IOLimits are limits of block devices. A device is named by its node or by any path
// that is on it.
type IOLimits struct {
	Weight                uint64 // 1 to 10000
	ReadBytes, WriteBytes map[string]uint64
	ReadOps, WriteOps     map[string]uint64
}

// ResourceLimit is a limit of setrlimit(2). NoLimit lifts it.
type ResourceLimit struct{ Soft, Hard uint64 }

// maxTasks is the limit of systemd-nspawn@.service.
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
		// As docker does: no swap beside it unless the job asks for some, else the
		// limit is not one.
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
		// nspawn's own --oom-score-adjust= is denied in a user namespace (252).
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

// enoughFiles are more than systemd-nspawn itself opens.
const enoughFiles = 65536

// resourceProperties let nspawn have what it is to give to the machine: what it has
// not, its --rlimit= leaves out without a word.
func (l Limits) resourceProperties() (props []systemd.Property) {
	for _, name := range slices.Sorted(maps.Keys(l.Resources)) {
		own := uint64(NoLimit)
		if name == "NOFILE" { // of which the kernel has a maximum (fs.nr_open)
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
