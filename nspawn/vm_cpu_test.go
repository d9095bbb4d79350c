package nspawn

import (
	"context"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"nomad-driver-nspawn/e2e/vm/vmtest"
	"nomad-driver-nspawn/nspawn/cgroup"
	"nomad-driver-nspawn/nspawn/machine"
)

// The tests in this file measure CPU time while machines use as much of it as they get.

// spin uses up the time of two cores.
const spin = "while :; do :; done & while :; do :; done"

// cpuTime returns the CPU time that a machine has used, as the kernel counts it.
func cpuTime(t *testing.T, name string) time.Duration {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(cgroup.OfUnit(name), "cpu.stat"))
	must.NoError(t, err)
	usec, err := strconv.Atoi(strings.Fields(string(text))[1]) // usage_usec
	must.NoError(t, err)
	return time.Duration(usec) * time.Microsecond
}

// cpuShares returns how many cores each of the running machines uses, on average over the
// period.
func cpuShares(t *testing.T, period time.Duration, names ...string) (cores []float64) {
	t.Helper()
	used, at := make([]time.Duration, len(names)), make([]time.Time, len(names))
	for i, name := range names {
		used[i], at[i] = cpuTime(t, name), time.Now()
	}
	time.Sleep(period)
	for i, name := range names {
		now := time.Now()
		cores = append(cores, float64(cpuTime(t, name)-used[i])/float64(now.Sub(at[i])))
	}
	return cores
}

// about checks that a value differs by at most a tenth.
func about(t *testing.T, want, got float64) {
	t.Helper()
	t.Logf("want %.3f, got %.3f", want, got)
	must.Between(t, 0.9*want, got, 1.1*want)
}

// startSpinning starts a machine and returns when it uses CPU time itself, and not only
// nspawn.
func startSpinning(t *testing.T, m *Manager, limits machine.Limits) (name string) {
	t.Helper()
	spec := newMachine(t, m, spin)
	spec.Limits = limits
	mustStart(t, m, spec)
	awaitTrap(t, m, spec) // it has forked
	return spec.Machine
}

func TestVMCPUQuota(t *testing.T) {
	vmtest.Require(t)
	m := newManager(t)
	for _, c := range []struct {
		limits machine.Limits
		cores  float64
	}{
		{machine.Limits{CPUQuota: time.Second / 2, CPUPeriod: 20 * time.Millisecond}, 0.5},
		{machine.Limits{CPUQuota: 5 * time.Second / 4}, 1.25},
	} {
		name := startSpinning(t, m, c.limits)
		about(t, c.cores, cpuShares(t, 4*time.Second, name)[0])
		usage := mustUsage(t, m, name)
		must.Positive(t, *usage.ThrottledPeriods)
		must.Positive(t, *usage.ThrottledTime)
		must.NoError(t, m.Remove(t.Context(), name))
	}
}

// TestVMCPUWeights has two machines compete for one core: that of the share of tasks
// without cores of their own.
func TestVMCPUWeights(t *testing.T) {
	vmtest.Require(t)
	m := newManager(t)
	must.NoError(t, m.LimitShare(t.Context(), []int{1}))
	t.Cleanup(func() { must.NoError(t, m.LimitShare(context.Background(), nil)) })
	light := startSpinning(t, m, machine.Limits{CPUWeight: 100})
	heavy := startSpinning(t, m, machine.Limits{CPUWeight: 300})
	usage := mustUsage(t, m, light)
	must.Zero(t, *usage.ThrottledPeriods) // no quota
	must.Zero(t, *usage.ThrottledTime)
	shares := cpuShares(t, 4*time.Second, light, heavy)
	about(t, 1, shares[0]+shares[1])
	about(t, 3, shares[1]/shares[0])
}
