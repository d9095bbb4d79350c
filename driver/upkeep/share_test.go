package upkeep

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/nomad/plugins/drivers"
	"github.com/shoenig/test/must"
)

// nomadGroup is a directory with the files of Nomad's control group that Share looks at.
type nomadGroup struct{ dir string }

func newNomadGroup(t *testing.T, cores string) nomadGroup {
	g := nomadGroup{t.TempDir()}
	g.set(t, cores)
	return g
}

// set does what the kernel does when Nomad writes cpuset.cpus.
func (g nomadGroup) set(t *testing.T, cores string) {
	must.NoError(t, os.WriteFile(filepath.Join(g.dir, effectiveCores), []byte(cores+"\n"), 0o644))
	must.NoError(t, os.WriteFile(filepath.Join(g.dir, "cpuset.cpus"), []byte(cores+"\n"), 0o644))
}

// task returns a task of the group, which has cores of its own unless they are "".
func (g nomadGroup) task(cores string) *drivers.TaskConfig {
	linux := &drivers.LinuxResources{CpusetCpus: cores, CpusetCgroupPath: filepath.Join(g.dir, "alloc.task.scope")}
	return &drivers.TaskConfig{Resources: &drivers.Resources{LinuxResources: linux}}
}

// newTestShare returns a Share, and the cores that it sets. It cannot set any while
// failures has errors.
func newTestShare(t *testing.T) (share *Share, limits chan []int, failures chan error) {
	limits, failures = make(chan []int, 10), make(chan error, 10)
	share = NewShare(t.Context(), func(_ context.Context, cpus []int) error {
		select {
		case err := <-failures:
			return err
		default:
			limits <- cpus
			return nil
		}
	}, hclog.NewNullLogger())
	return share, limits, failures
}

func TestShareFollowsNomad(t *testing.T) {
	share, limits, failures := newTestShare(t)
	group := newNomadGroup(t, "0-3")
	must.NoError(t, share.Update(t.Context(), group.task("2"))) // its group is another
	must.NoError(t, share.Update(t.Context(), &drivers.TaskConfig{}))
	must.Zero(t, len(limits))
	for range 2 {
		must.NoError(t, share.Update(t.Context(), group.task("")))
	}
	must.Eq(t, []int{0, 1, 2, 3}, <-limits)
	must.Zero(t, len(limits))

	group.set(t, "0,3") // without a task that starts
	must.Eq(t, []int{0, 3}, <-limits)
	failures <- errors.New("the bus is away")
	group.set(t, "0-1")
	must.Eq(t, []int{0, 1}, <-limits)

	// The cores are those of now when a task with cores begins, too.
	share.mu.Lock()
	must.NoError(t, os.WriteFile(filepath.Join(group.dir, effectiveCores), []byte("3\n"), 0o644))
	share.mu.Unlock()
	must.NoError(t, share.Update(t.Context(), group.task("0-2")))
	must.Eq(t, []int{3}, <-limits)

	next := newNomadGroup(t, "1") // of another agent
	must.NoError(t, share.Update(t.Context(), next.task("")))
	must.Eq(t, []int{1}, <-limits)
	group.set(t, "0-3")
	next.set(t, "2")
	must.Eq(t, []int{2}, <-limits)
}

// A task must not start if it would run on cores of others.
func TestShareFails(t *testing.T) {
	share, limits, failures := newTestShare(t)
	group := newNomadGroup(t, "0")
	failures <- errors.New("no bus")
	must.ErrorContains(t, share.Update(t.Context(), group.task("")), "reserved for others: no bus")
	must.NoError(t, share.Update(t.Context(), group.task("")))
	must.Eq(t, []int{0}, <-limits)
	group.set(t, "x")
	must.ErrorContains(t, share.Update(t.Context(), group.task("")), `parse cores "x"`)
}

// Without a cpuset controller, Nomad reserves no cores.
func TestShareWithoutController(t *testing.T) {
	share, limits, _ := newTestShare(t)
	must.NoError(t, share.Update(t.Context(), nomadGroup{"/nowhere"}.task("")))
	must.Zero(t, len(limits))
}
