package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/shoenig/test/must"
)

func TestParseProcessorTime(t *testing.T) {
	t.Parallel()
	used, err := parseProcessorTime("7 (a) b (c) S 1 7 7 0 -1 4194560 1 2 3 4 150 25 9 9 20 0 1 0\n")
	must.NoError(t, err)
	must.EqOp(t, 1750*time.Millisecond, used)
	for _, stat := range []string{"", "7 (a) S 1 2", "7 (a) S 1 7 7 0 -1 4194560 1 2 3 4 x 25"} {
		_, err := parseProcessorTime(stat)
		must.Error(t, err)
	}
}

func TestReadKilobytes(t *testing.T) {
	t.Parallel()
	rss, err := readKilobytes(os.Getpid(), "status", "VmRSS")
	must.NoError(t, err)
	must.Between(t, 1024, rss, 1<<20) // a test binary: more than 1 MB, less than 1 GB
	_, err = readKilobytes(os.Getpid(), "status", "VmNothing")
	must.ErrorContains(t, err, "VmNothing")
}

func TestChildren(t *testing.T) {
	t.Parallel()
	cmd := exec.Command("sleep", "60")
	must.NoError(t, cmd.Start())
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	list, err := children(os.Getpid())
	must.NoError(t, err)
	must.True(t, slices.Contains(list, cmd.Process.Pid))
	list, err = children(cmd.Process.Pid)
	must.NoError(t, err)
	must.SliceEmpty(t, list)
	_, err = onlyChild(cmd.Process.Pid)
	must.ErrorContains(t, err, "not just one")
}

func TestMembersAreThoseOfTheGroupsBelowToo(t *testing.T) {
	t.Parallel()
	group := t.TempDir()
	for dir, procs := range map[string]string{".": "", "supervisor": "12\n", "payload": "13\n14\n", "payload/deep": "15\n"} {
		must.NoError(t, os.MkdirAll(filepath.Join(group, dir), 0o755))
		must.NoError(t, os.WriteFile(filepath.Join(group, dir, "cgroup.procs"), []byte(procs), 0o644))
	}
	pids, err := members(group)
	must.NoError(t, err)
	must.Eq(t, []int{12, 13, 14, 15}, slices.Sorted(slices.Values(pids)))
	_, err = members(filepath.Join(group, "gone"))
	must.Error(t, err)
}
