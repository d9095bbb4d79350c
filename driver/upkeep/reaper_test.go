package upkeep

import (
	"maps"
	"testing"
	"time"

	"github.com/hashicorp/nomad/helper/testlog"
	"github.com/shoenig/test/must"

	"nomad-driver-nspawn/driver/job"
	"nomad-driver-nspawn/driver/operator"
	"nomad-driver-nspawn/nspawn"
	"nomad-driver-nspawn/nspawn/dirs"
	"nomad-driver-nspawn/nspawn/machine"
	"nomad-driver-nspawn/nspawn/systemd"
	"nomad-driver-nspawn/nspawn/systemd/systemdtest"
)

func TestDangling(t *testing.T) {
	now := time.Now()
	before, removed := now.Add(-time.Minute), t.TempDir()+"/removed"
	record := func(node, dir string, age time.Duration) nspawn.Record {
		return nspawn.Record{Invocation: "1", Started: now.Add(-age), Fields: map[string]string{"NOMAD_NODE_ID": node, job.AllocDirField: dir}}
	}
	old := &Reaper{began: now.Add(-time.Hour)}
	ours := map[string]bool{"ours": true}
	for name, c := range map[string]struct {
		record nspawn.Record
		want   bool
	}{
		"ours":               {record("ours", t.TempDir(), time.Hour), true},
		"young":              {record("ours", t.TempDir(), time.Second), false},
		"of another client":  {record("theirs", t.TempDir(), time.Hour), false},
		"of a removed alloc": {record("theirs", removed, time.Hour), true},
		"of a new alloc":     {record("theirs", removed, time.Second), false},
		"of nobody":          {record("", "", time.Hour), false},
		"files":              {nspawn.Record{}, true},
	} {
		must.Eq(t, c.want, old.dangling(c.record, ours, before), must.Sprint(name))
	}
	must.False(t, old.dangling(record("ours", t.TempDir(), time.Hour), nil, before), must.Sprint("node not known"))
	must.False(t, old.dangling(record("", t.TempDir(), time.Hour), map[string]bool{"": true}, before))
	old.unfinished.Store("half-removed", true)
	half := record("theirs", t.TempDir(), time.Second)
	half.Machine = "half-removed"
	must.True(t, old.dangling(half, nil, before), must.Sprint("its removal has failed"))
	old.Cancel("half-removed")
	must.False(t, old.dangling(half, nil, before), must.Sprint("is started again"))
	young := &Reaper{began: now}
	must.False(t, young.dangling(record("ours", removed, time.Hour), ours, before), must.Sprint("may be recovered yet"))
}

func noTasks() (machines, nodes map[string]bool) { return nil, nil }

// TestScheduled checks that a failed removal is soon repeated, and that nothing is
// remembered of the machine when nothing is left of it.
func TestScheduled(t *testing.T) {
	fake := systemdtest.New(t)
	machines := nspawn.NewManager(fake.Conn(), dirs.Dirs{Run: t.TempDir(), State: t.TempDir()}, nil)
	reaper := NewReaper(machines, noTasks, testlog.HCLogger(t))
	unit := machine.UnitName(machine.Name("2e0a7b7c-6a8f-4f1e-9d0c-5b1f4c3d2e1f", "web"))
	must.NoError(t, fake.Conn().StartTransientUnit(t.Context(), unit, []systemd.Property{}))
	fake.Exit(unit, 0)
	for range 2 { // with the unit, and without
		reaper.Schedule(machine.Name("2e0a7b7c-6a8f-4f1e-9d0c-5b1f4c3d2e1f", "web"))
		<-reaper.wake
		must.NoError(t, reaper.Once(t.Context(), operator.DanglingMachines{CreationGrace: "1h"}))
		must.SliceEmpty(t, fake.Units())
	}
	must.NoError(t, reaper.Once(t.Context(), operator.DanglingMachines{CreationGrace: "1h"}))
	must.MapEmpty(t, maps.Collect(reaper.unfinished.Range))
}
