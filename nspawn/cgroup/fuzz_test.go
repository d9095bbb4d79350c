package cgroup

import (
	"strings"
	"testing"
	"testing/fstest"
)

// FuzzUsage reads whatever the files of a control group may hold.
func FuzzUsage(f *testing.F) {
	f.Add("user_usec 20\nsystem_usec 10\nnr_throttled 2\nthrottled_usec 7\n", "anon 100\nfile 200\nkernel 300\n", "600\n", "11\n")
	f.Add("user_usec 18446744073709551615\n", "anon\n", "max\n", "\n")
	f.Add("", "", "", "x")
	f.Fuzz(func(_ *testing.T, cpu, memory, current, procs string) {
		_, _ = readUsage(fstest.MapFS{"cpu.stat": file(cpu), "memory.stat": file(memory), "memory.current": file(current)}, nil)
		_, _ = readUsage(fstest.MapFS{"cpu.stat": file(cpu), "payload/a b/cgroup.procs": file(procs)}, func(int) uint64 { return 1 })
	})
}

// FuzzUnified has groups with any name, as a container can make them.
func FuzzUnified(f *testing.F) {
	f.Add("/machine.slice/x.service/payload/init.scope")
	f.Add("/0::/x ")
	f.Add("/\t (deleted)")
	f.Fuzz(func(t *testing.T, path string) {
		path = strings.NewReplacer("\n", "", "\x00", "").Replace(path)
		got, ok := unified("1:name=systemd:" + path + "\n0::" + path + "\n")
		if !ok || got != path {
			t.Errorf("%q became %q", path, got)
		}
	})
}
