package driver

import (
	"context"
	"maps"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/nomad/helper/testlog"
	"github.com/hashicorp/nomad/helper/uuid"
	"github.com/hashicorp/nomad/plugins/drivers"
	"github.com/shoenig/test/must"

	"nomad-driver-nspawn/nspawn"
	"nomad-driver-nspawn/nspawn/systemd"
	"nomad-driver-nspawn/nspawn/systemd/systemdtest"
)

func TestDangling(t *testing.T) {
	now := time.Now()
	before, removed := now.Add(-time.Minute), t.TempDir()+"/removed"
	record := func(node, dir string, age time.Duration) nspawn.Record {
		return nspawn.Record{Invocation: "1", Started: now.Add(-age), Fields: map[string]string{"NOMAD_NODE_ID": node, allocDirField: dir}}
	}
	old := &Driver{reaper: reaper{began: now.Add(-time.Hour)}}
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
	old.reaper.unfinished.Store("half-removed", true)
	half := record("theirs", t.TempDir(), time.Second)
	half.Machine = "half-removed"
	must.True(t, old.dangling(half, nil, before), must.Sprint("its removal has failed"))
	old.reaper.spare("half-removed")
	must.False(t, old.dangling(half, nil, before), must.Sprint("is started again"))
	young := &Driver{reaper: reaper{began: now}}
	must.False(t, young.dangling(record("ours", removed, time.Hour), ours, before), must.Sprint("may be recovered yet"))
}

func TestDanglingConfig(t *testing.T) {
	must.NoError(t, parsePolicy(t, "").Validate())
	must.Eq(t, DanglingMachines{Enabled: true, Period: "1m", CreationGrace: "5m"},
		parsePolicy(t, `dangling_machines { period = "1m" }`).DanglingMachines)
	err := parsePolicy(t, `dangling_machines { 
		period = "often"
		creation_grace = "0s"
	}`).Validate()
	must.ErrorContains(t, err, `dangling_machines.period: "often"`)
	must.ErrorContains(t, err, `dangling_machines.creation_grace: "0s"`)
}

// What a start has not undone, say because the bus was away, is removed soon, and
// where all is undone, nothing is kept of it.
func TestStartThatWasNotUndone(t *testing.T) {
	fake := systemdtest.New(t)
	d := &Driver{
		ctx:      t.Context(),
		logger:   testlog.HCLogger(t),
		machines: nspawn.NewManager(fake.Conn(), nspawn.Dirs{Run: t.TempDir(), State: t.TempDir()}),
		reaper:   reaper{began: time.Now(), wake: make(chan struct{}, 1)},
		config:   Config{DisableLogCollection: true},
	}
	alloc := uuid.Generate()
	cfg := &drivers.TaskConfig{ID: alloc + "/web/1", AllocID: alloc, Name: "web", AllocDir: t.TempDir()}
	unit := nspawn.UnitName(nspawn.MachineName(alloc, "web"))
	must.NoError(t, fake.Conn().StartTransientUnit(t.Context(), unit, []systemd.Property{}))
	fake.Exit(unit, 0)
	task := parseTask(t, `image = "missing/"`)
	must.NoError(t, cfg.EncodeConcreteDriverConfig(&task))
	_, _, err := d.StartTask(cfg)
	must.Error(t, err)
	<-d.reaper.wake
	must.NoError(t, d.reapOnce(t.Context(), DanglingMachines{CreationGrace: "1h"}))
	must.SliceEmpty(t, fake.Units())

	_, _, err = d.StartTask(cfg) // nothing is there
	must.Error(t, err)
	must.NoError(t, d.reapOnce(t.Context(), DanglingMachines{CreationGrace: "1h"}))
	must.MapEmpty(t, maps.Collect(d.reaper.unfinished.Range))
}

// A plugin whose agent is gone leaves the host alone: the bubble ends only with all
// that was started in it.
func TestUpkeepEndsWithTheAgent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &Driver{ctx: context.Background(), config: parsePolicy(t, "enabled = false")}
		ctx, cancel := context.WithCancel(t.Context())
		fingerprints, err := d.Fingerprint(ctx)
		must.NoError(t, err)
		<-fingerprints
		cancel()
		for range fingerprints {
		}
	})
}
