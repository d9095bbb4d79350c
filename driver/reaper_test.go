package driver

import (
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"nomad-driver-nspawn/nspawn"
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
