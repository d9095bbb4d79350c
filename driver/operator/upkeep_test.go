package operator

import (
	"testing"

	"github.com/shoenig/test/must"
)

func TestDanglingConfig(t *testing.T) {
	must.NoError(t, parseConfig(t, "").Validate())
	must.Eq(t, DanglingMachines{Enabled: true, Period: "1m", CreationGrace: "5m"},
		parseConfig(t, `dangling_machines { period = "1m" }`).DanglingMachines)
	err := parseConfig(t, `dangling_machines { 
		period = "often"
		creation_grace = "0s"
	}`).Validate()
	must.ErrorContains(t, err, `dangling_machines.period: "often"`)
	must.ErrorContains(t, err, `dangling_machines.creation_grace: "0s"`)
}
