package machine

import (
	"cmp"

	"nomad-driver-nspawn/nspawn/systemd"
)

// Limits bound what the machine may use. Zero values set no limit.
type Limits struct {
	MemoryMax   uint64 // bytes
	MemoryLow   uint64 // bytes that are protected from reclaim
	CPUWeight   uint64 // 1 to 10000, see systemd.resource-control(5)
	AllowedCPUs []int  // cores; none means all
	Pids        uint64 // processes and threads; 0 is maxTasks
}

// maxTasks is the limit of systemd-nspawn@.service.
const maxTasks = 16384

func (l Limits) properties() []systemd.Property {
	props := []systemd.Property{systemd.NewProperty("TasksMax", cmp.Or(l.Pids, maxTasks))}
	if l.MemoryMax > 0 {
		// As docker does: no swap beside it, else the limit is not one.
		props = append(props, systemd.NewProperty("MemoryMax", l.MemoryMax), systemd.NewProperty("MemorySwapMax", uint64(0)))
	}
	if l.MemoryLow > 0 {
		props = append(props, systemd.NewProperty("MemoryLow", l.MemoryLow))
	}
	if l.CPUWeight > 0 {
		props = append(props, systemd.NewProperty("CPUWeight", l.CPUWeight))
	}
	if len(l.AllowedCPUs) > 0 {
		props = append(props, systemd.NewProperty("AllowedCPUs", cpuMask(l.AllowedCPUs)))
	}
	return props
}
