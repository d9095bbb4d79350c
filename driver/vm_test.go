package driver

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/nomad/client/lib/cgroupslib"
	"github.com/hashicorp/nomad/client/lib/idset"
	"github.com/hashicorp/nomad/client/lib/numalib/hw"
	cstructs "github.com/hashicorp/nomad/client/structs"
	"github.com/hashicorp/nomad/helper/testlog"
	"github.com/hashicorp/nomad/plugins/drivers"
	"github.com/shoenig/test/must"

	"nomad-driver-nspawn/e2e/vm/vmtest"
	"nomad-driver-nspawn/nspawn/cgroup"
	"nomad-driver-nspawn/nspawn/machine"
)

// taskFile returns the fields of a file of the task's control group.
func taskFile(t *testing.T, task *drivers.TaskConfig, file string) []string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(cgroup.OfUnit(machine.Name(task.AllocID, task.Name)), file))
	must.NoError(t, err)
	return strings.Fields(string(text))
}

// taskValue returns a value of such a file: the only one, or the one after the key.
func taskValue(t *testing.T, task *drivers.TaskConfig, file, key string) float64 {
	t.Helper()
	fields := taskFile(t, task, file)
	at := 0
	for i, field := range fields {
		if field == key {
			at = i + 1
		}
	}
	value, err := strconv.ParseFloat(fields[at], 64)
	must.NoError(t, err)
	return value
}

// cpuSince returns the function that returns how many cores tasks have used since.
func cpuSince(t *testing.T, tasks ...*drivers.TaskConfig) func() []float64 {
	var used []float64
	var at []time.Time
	for _, task := range tasks {
		used, at = append(used, taskValue(t, task, "cpu.stat", "usage_usec")), append(at, time.Now())
	}
	return func() (cores []float64) {
		for i, task := range tasks {
			elapsed := time.Since(at[i])
			cores = append(cores, (taskValue(t, task, "cpu.stat", "usage_usec")-used[i])/float64(elapsed.Microseconds()))
		}
		return cores
	}
}

// loop uses up the time of two cores.
const loop = "(while :; do :; done) & echo up; while :; do :; done"

// TestVMReservedCores has Nomad's own code reserve a core, and release it, while a task
// without cores would use all of them.
func TestVMReservedCores(t *testing.T) {
	vmtest.Require(t)
	log := testlog.HCLogger(t)
	must.NoError(t, cgroupslib.Init(log, "0-1"))
	partition := cgroupslib.NewPartition(log, idset.From[hw.CoreID]([]hw.CoreID{0, 1}))
	harness := newHarness(t, "")
	start := func(cores string) *drivers.TaskConfig {
		task := newTask(t, harness, script(loop))
		linux := task.Resources.LinuxResources
		linux.CpusetCpus = cores
		linux.CpusetCgroupPath = cgroupslib.LinuxResourcesPath(task.AllocID, task.Name, cores != "")
		startTask(t, harness, task)
		awaitLog(t, task, "stdout", "up\n")
		return task
	}
	measure := func(tasks ...*drivers.TaskConfig) []float64 {
		used := cpuSince(t, tasks...)
		time.Sleep(3 * time.Second)
		cores := used()
		t.Log(cores)
		return cores
	}
	// The test and the host need some time, too.
	shared := start("")
	must.Between(t, 1.6, measure(shared)[0], 2.05)

	one := idset.From[hw.CoreID]([]hw.CoreID{1})
	must.NoError(t, partition.Reserve(one))
	must.Between(t, 0.75, measure(shared)[0], 1.05) // before another task starts
	cores := measure(shared, start("1"))
	must.Between(t, 0.75, cores[0], 1.05)
	must.Between(t, 0.75, cores[1], 1.05)

	must.NoError(t, partition.Release(one)) // while its task still runs
	must.Between(t, 1.15, measure(shared)[0], 2.05)
}

// within2 checks that a value differs by at most 2 % from what the kernel says.
func within2(t *testing.T, what string, kernel, value float64) {
	t.Helper()
	t.Logf("%s: kernel %v, driver %v", what, kernel, value)
	must.Between(t, 0.98*kernel, value, 1.02*kernel, must.Sprint(what))
}

// TestVMStats compares what Nomad is told with the files of the control group.
func TestVMStats(t *testing.T) {
	vmtest.Require(t)
	harness := newHarness(t, "")
	// A short period makes the task use CPU time evenly.
	task := newTask(t, harness, "cpu_hard_limit = true\ncpu_cfs_period = 10000\n"+
		script(`dd if=/dev/zero of=/file bs=1M count=20 2>/dev/null; sync; echo up; exec dd if=/dev/zero of=/dev/null bs=40M`))
	task.Resources.LinuxResources.PercentTicks = 0.35 // of 2 cores
	startTask(t, harness, task)
	awaitLog(t, task, "stdout", "up\n")

	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	const interval = 5 * time.Second
	used := func() float64 { return taskValue(t, task, "cpu.stat", "usage_usec") }
	// A busy host may hold up each side at any time. So what the kernel says is read before
	// and after each sample of the driver.
	beforeFirst := used()
	usages, err := harness.TaskStats(ctx, task.ID, interval)
	must.NoError(t, err)
	first := <-usages
	afterFirst := used()
	var second *cstructs.TaskResourceUsage
	var beforeSecond float64
	for second == nil {
		select {
		case second = <-usages:
		case <-time.After(20 * time.Millisecond):
			beforeSecond = used()
		}
	}
	afterSecond := used()
	usage := second.ResourceUsage
	elapsed := float64(second.Timestamp-first.Timestamp) / 1000
	cores := usage.CpuStats.Percent / 100
	t.Log("CPU time: kernel", beforeSecond-afterFirst, "to", afterSecond-beforeFirst, "driver", cores*elapsed)
	must.Between(t, 0.98*(beforeSecond-afterFirst), cores*elapsed, 1.02*(afterSecond-beforeFirst))
	within2(t, "CPU percent", usage.CpuStats.UserMode+usage.CpuStats.SystemMode, usage.CpuStats.Percent)
	must.Between(t, 0.5, cores, 0.77) // the quota is 0.7

	// These grow all the time.
	periods, throttled := taskValue(t, task, "cpu.stat", "nr_throttled"), taskValue(t, task, "cpu.stat", "throttled_usec")
	usages, err = harness.TaskStats(ctx, task.ID, interval) // the first is of now
	must.NoError(t, err)
	usage = (<-usages).ResourceUsage
	must.Between(t, periods, float64(usage.CpuStats.ThrottledPeriods), taskValue(t, task, "cpu.stat", "nr_throttled"))
	must.Between(t, throttled*1000, float64(usage.CpuStats.ThrottledTime), taskValue(t, task, "cpu.stat", "throttled_usec")*1000)
	must.Positive(t, periods)

	memory := usage.MemoryStats
	must.Eq(t, []string{"RSS", "Cache", "Swap", "Usage", "Max Usage", "Kernel Usage"}, memory.Measured)
	for _, c := range []struct {
		file, key string
		value     uint64
	}{
		{"memory.current", "", memory.Usage},
		{"memory.peak", "", memory.MaxUsage},
		{"memory.swap.current", "", memory.Swap},
		{"memory.stat", "anon", memory.RSS},
		{"memory.stat", "file", memory.Cache},
		{"memory.stat", "kernel", memory.KernelUsage},
	} {
		within2(t, fmt.Sprint(c.file, " ", c.key), taskValue(t, task, c.file, c.key), float64(c.value))
	}
	must.Greater(t, 40<<20, memory.RSS)
	must.Greater(t, 20<<20, memory.Cache)
}
