package cgroup

import (
	"fmt"
	"io/fs"
	"maps"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"
)

func file(content string) *fstest.MapFile { return &fstest.MapFile{Data: []byte(content)} }

func TestUsage(t *testing.T) {
	usage, err := readUsage(fstest.MapFS{
		"cpu.stat":            file("usage_usec 30\nuser_usec 20\nsystem_usec 10\nnr_periods 5\nnr_throttled 2\nthrottled_usec 7\n"),
		"memory.stat":         file("anon 100\nfile 200\nkernel 300\n"),
		"memory.current":      file("600\n"),
		"memory.peak":         file("700\n"),
		"memory.swap.current": file("0\n"),
	}, nil)
	must.NoError(t, err)
	must.Eq(t, 20*time.Microsecond, usage.CPUUser)
	must.Eq(t, 10*time.Microsecond, usage.CPUSystem)
	must.Eq(t, 2, *usage.ThrottledPeriods)
	must.Eq(t, 7*time.Microsecond, *usage.ThrottledTime)
	must.Eq(t, []uint64{100, 200, 300, 600, 700, 0}, []uint64{
		*usage.Memory.RSS, *usage.Memory.Cache, *usage.Memory.Kernel,
		*usage.Memory.Current, *usage.Memory.Peak, *usage.Memory.Swap,
	})
}

// TestUsageWithoutControllers checks that unknown values are left out instead of being 0.
func TestUsageWithoutControllers(t *testing.T) {
	usage, err := readUsage(fstest.MapFS{
		"cpu.stat":                        file("usage_usec 30\nuser_usec 20\nsystem_usec 10\n"),
		"supervisor/cgroup.procs":         file("11\n"),
		"payload/init.scope/cgroup.procs": file("12\n13\n"),
	}, func(pid int) uint64 { return uint64(pid) * 1000 })
	must.NoError(t, err)
	must.Eq(t, 36000, *usage.Memory.RSS)
	must.Nil(t, usage.ThrottledPeriods)
	must.Nil(t, usage.Memory.Current)
	must.Nil(t, usage.Memory.Swap)
}

// TestUsageIsBounded reads a machine with more groups and processes than the limits.
func TestUsageIsBounded(t *testing.T) {
	base := fstest.MapFS{"cpu.stat": file("user_usec 20\nsystem_usec 10\n")}
	groups, processes := maps.Clone(base), maps.Clone(base)
	for n := range 2 * maxUsageGroups {
		groups[fmt.Sprintf("payload/%d/cgroup.procs", n)] = file("1\n")
	}
	processes["cgroup.procs"] = file(strings.Repeat("1\n", 2*maxUsageProcesses))
	for _, group := range []fstest.MapFS{groups, processes} {
		reads := 0
		usage, err := readUsage(group, func(int) uint64 { reads++; return 1 })
		must.NoError(t, err)
		must.Nil(t, usage.Memory.RSS)
		must.EqOp(t, 20*time.Microsecond, usage.CPUUser)
		must.LessEq(t, maxUsageProcesses, reads)
	}
}

// vanishing is a control group whose files can be opened, and not read any more.
type vanishing struct {
	fs.FS
	path string
	err  error
}

func (v vanishing) ReadFile(name string) ([]byte, error) {
	if name == v.path {
		return nil, &fs.PathError{Op: "read", Path: name, Err: v.err}
	}
	return fs.ReadFile(v.FS, name)
}

// TestUsageWhileGroupsEnd has a group end at each moment of the look at it: before it is
// opened, or after that. The kernel lists the processes of a threaded one above it.
func TestUsageWhileGroupsEnd(t *testing.T) {
	group := fstest.MapFS{
		"cpu.stat":                        file("user_usec 20\nsystem_usec 10\n"),
		"payload/ends/cgroup.procs":       file("11\n"),
		"payload/init.scope/cgroup.procs": file("12\n13\n"),
	}
	for _, err := range []error{fs.ErrNotExist, unix.ENODEV, unix.EOPNOTSUPP} {
		usage, err := readUsage(vanishing{group, "payload/ends/cgroup.procs", err}, func(pid int) uint64 { return uint64(pid) * 1000 })
		must.NoError(t, err)
		must.Eq(t, 25000, *usage.Memory.RSS)
	}
	_, err := readUsage(vanishing{group, "payload/ends/cgroup.procs", fs.ErrPermission}, func(int) uint64 { return 0 })
	must.ErrorIs(t, err, fs.ErrPermission)
}

func TestUsageOfBrokenFiles(t *testing.T) {
	_, err := readUsage(fstest.MapFS{"cpu.stat": file("usage_usec x\n")}, nil)
	must.ErrorContains(t, err, `parse cpu.stat: line "usage_usec x`)
	_, err = readUsage(fstest.MapFS{}, nil)
	must.ErrorContains(t, err, "cpu.stat")
}
