package nspawn

import (
	"os"
	"strings"
	"testing"

	"github.com/shoenig/test/must"

	"nomad-driver-nspawn/nspawn/machine"
)

// systemd writes some texts into the unit's file as they are. A line feed in one would begin
// a setting, which root's systemd reads after a daemon-reload.
func TestHostAttackUnitFile(t *testing.T) {
	m := newManager(t)
	const evil = "/dev/null\nExecStopPost=/bin/evil\n#"
	for name, set := range map[string]func(*machine.Spec){
		"device":      func(s *machine.Spec) { s.Limits.IO.ReadBytes = map[string]uint64{evil: 1 << 20} },
		"description": func(s *machine.Spec) { s.Description = evil },
	} {
		t.Run(name, func(t *testing.T) {
			spec := newMachine(t, m, "true")
			set(&spec)
			_, err := start(t, m, spec)
			must.ErrorContains(t, err, `\nExecStopPost=`)
		})
	}
	spec := newMachine(t, m, "sleep inf")
	spec.JournalFields = map[string]string{"EVIL": evil}
	mustStart(t, m, spec)
	text, err := os.ReadFile("/run/systemd/transient/" + machine.UnitName(spec.Machine))
	must.NoError(t, err)
	must.StrContains(t, string(text), "ExecStopPost=/bin/evil") // so the attempt is a real one
	for line := range strings.Lines(string(text)) {
		must.False(t, strings.HasPrefix(line, "ExecStopPost="), must.Sprint(line))
	}
	must.NoError(t, m.Remove(t.Context(), spec.Machine))
}
