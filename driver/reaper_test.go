package driver

import (
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"nomad-driver-nspawn/nspawn"
)

func TestDangling(t *testing.T) {
	now := time.Now()
	record := func(machine, node string, age time.Duration) nspawn.Record {
		return nspawn.Record{Machine: machine, Started: now.Add(-age), Fields: map[string]string{"NOMAD_NODE_ID": node}}
	}
	records := []nspawn.Record{
		record("known", "ours", time.Hour),
		record("young", "ours", time.Second),
		record("other-client", "theirs", time.Hour),
		record("nobody", "", time.Hour),
		record("dangling", "ours", time.Hour),
	}
	known, ours := map[string]bool{"known": true}, map[string]bool{"ours": true}
	must.Eq(t, []string{"dangling"}, dangling(records, known, ours, now.Add(-time.Minute)))
	must.SliceEmpty(t, dangling(records, nil, nil, now.Add(-time.Minute)))
	must.SliceEmpty(t, dangling(records, nil, map[string]bool{"": true}, now.Add(-time.Minute)))
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
