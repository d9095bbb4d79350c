package driver

import (
	"context"
	"time"

	"github.com/hashicorp/nomad/client/lib/cpustats"
	cstructs "github.com/hashicorp/nomad/client/structs"

	"nomad-driver-nspawn/nspawn/cgroup"
)

// minStatsInterval is the shortest interval that Nomad may ask for. A ticker of 0 would
// panic.
const minStatsInterval = 100 * time.Millisecond

// TaskStats implements drivers.DriverPlugin. The channel is closed when the task has
// ended. It is also closed instead of sending an error, which Nomad would log once per
// interval forever. That includes a task that is not known: Nomad often asks for the use of
// a short task after it has destroyed it.
func (d *Driver) TaskStats(ctx context.Context, id string, interval time.Duration) (<-chan *cstructs.TaskResourceUsage, error) {
	usages := make(chan *cstructs.TaskResourceUsage)
	h, ok := d.tasks.get(id)
	if !ok {
		close(usages)
		return usages, nil
	}
	d.mu.RLock()
	trackers := newTrackers(d.compute)
	d.mu.RUnlock()
	go func() {
		defer close(usages)
		// The interval is what Nomad asked for. It does not wait for anything.
		ticker := time.NewTicker(max(interval, minStatsInterval))
		defer ticker.Stop()
		for {
			usage, err := d.machines.Usage(h.machine)
			if err != nil {
				d.logger.Debug("read usage", "task_id", id, "error", err)
			} else {
				select {
				case usages <- trackers.convert(usage):
				case <-h.done:
					return
				case <-ctx.Done():
					return
				case <-d.ctx.Done():
					return
				}
			}
			select {
			case <-ticker.C:
			case <-h.done:
				return
			case <-ctx.Done():
				return
			case <-d.ctx.Done():
				return
			}
		}
	}()
	return usages, nil
}

// trackers turn CPU times into shares of CPU time between two samples.
type trackers struct{ user, system, total *cpustats.Tracker }

func newTrackers(compute cpustats.Compute) trackers {
	// Nomad before 1.7 does not send NumCores. Without it, ticks would be NaN.
	compute.NumCores = max(compute.NumCores, 1)
	return trackers{cpustats.New(compute), cpustats.New(compute), cpustats.New(compute)}
}

func (t trackers) convert(usage cgroup.Usage) *cstructs.TaskResourceUsage {
	percent := t.total.Percent(float64(usage.CPUUser + usage.CPUSystem))
	cpu := &cstructs.CpuStats{
		UserMode:   t.user.Percent(float64(usage.CPUUser)),
		SystemMode: t.system.Percent(float64(usage.CPUSystem)),
		Percent:    percent,
		TotalTicks: t.total.TicksConsumed(percent),
		Measured:   []string{"System Mode", "User Mode", "Percent"},
	}
	if usage.ThrottledPeriods != nil {
		cpu.ThrottledPeriods = *usage.ThrottledPeriods
		cpu.ThrottledTime = uint64(usage.ThrottledTime.Nanoseconds())
		cpu.Measured = append(cpu.Measured, "Throttled Periods", "Throttled Time")
	}
	resources := &cstructs.ResourceUsage{MemoryStats: memoryStats(usage.Memory), CpuStats: cpu}
	return &cstructs.TaskResourceUsage{
		ResourceUsage: resources,
		Timestamp:     usage.Time.UTC().UnixNano(),
		Pids:          map[string]*cstructs.ResourceUsage{},
	}
}

func memoryStats(memory cgroup.Memory) *cstructs.MemoryStats {
	stats := &cstructs.MemoryStats{}
	for _, field := range []struct {
		name  string
		from  *uint64
		value *uint64
	}{
		{"RSS", memory.RSS, &stats.RSS},
		{"Cache", memory.Cache, &stats.Cache},
		{"Swap", memory.Swap, &stats.Swap},
		{"Usage", memory.Current, &stats.Usage},
		{"Max Usage", memory.Peak, &stats.MaxUsage},
		{"Kernel Usage", memory.Kernel, &stats.KernelUsage},
	} {
		if field.from != nil {
			*field.value = *field.from
			stats.Measured = append(stats.Measured, field.name)
		}
	}
	return stats
}
