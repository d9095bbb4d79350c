package nspawn

import (
	"os"
	"testing"

	"github.com/shoenig/test/must"

	"nomad-driver-nspawn/nspawn/systemd"
)

// A start assumes that a machine without a directory does not exist.
// TestHostUnitWithoutDirectory checks that if someone has removed only the directory, the
// start fails and the next one succeeds.
func TestHostUnitWithoutDirectory(t *testing.T) {
	m := newManager(t)
	spec := newMachine(t, m, "exec sleep 1000")
	mustStart(t, m, spec)
	must.True(t, m.Exists(spec.Machine))
	must.NoError(t, os.RemoveAll(m.dirs.Machine(spec.Machine)))
	must.False(t, m.Exists(spec.Machine))
	_, err := start(t, m, spec)
	must.ErrorIs(t, err, systemd.ErrUnitExists)
	must.Eq(t, nil, traces(t, m, spec.Machine))
	mustStart(t, m, spec)
}
