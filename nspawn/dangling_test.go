package nspawn

import (
	"os"
	"slices"
	"testing"

	"github.com/shoenig/test/must"
)

func recordOf(t *testing.T, m *Manager, name string) Record {
	records, err := m.Machines(t.Context())
	must.NoError(t, err)
	i := slices.IndexFunc(records, func(r Record) bool { return r.Machine == name })
	must.NotEq(t, -1, i)
	return records[i]
}

// TestHostFilesWithoutUnit checks that the files that a plugin leaves if it is killed
// during a start or a removal are found, by either directory, and removed.
func TestHostFilesWithoutUnit(t *testing.T) {
	m := newManager(t)
	spec := newMachine(t, m, "true")
	mustPrepare(t, m, spec)
	record := recordOf(t, m, spec.Machine)
	must.Eq(t, Record{Machine: spec.Machine}, record)
	must.NoError(t, m.RemoveDangling(t.Context(), record))
	must.Eq(t, nil, traces(t, m, spec.Machine))

	must.NoError(t, os.MkdirAll(m.dirs.WritableLayer(spec.Machine), 0o700)) // as after a reboot
	must.NoError(t, m.RemoveDangling(t.Context(), recordOf(t, m, spec.Machine)))
	must.Eq(t, nil, traces(t, m, spec.Machine))
}

// TestHostRemoveDanglingLeavesOthers checks that a machine is left alone if it is being
// started, or was started again since it was looked at.
func TestHostRemoveDanglingLeavesOthers(t *testing.T) {
	m := newManager(t)
	spec := newMachine(t, m, "sleep 1000")
	lock, err := m.locks.Lock(spec.Machine)
	must.NoError(t, err)
	mustPrepare(t, m, spec)
	must.NoError(t, m.RemoveDangling(t.Context(), recordOf(t, m, spec.Machine)))
	_, err = os.Stat(m.dirs.Machine(spec.Machine))
	must.NoError(t, err)
	must.NoError(t, lock.Close())

	mustStart(t, m, spec)
	old := recordOf(t, m, spec.Machine)
	mustStart(t, m, spec)
	must.NoError(t, m.RemoveDangling(t.Context(), old))
	must.NoError(t, m.RemoveDangling(t.Context(), Record{Machine: spec.Machine}))
	status, err := m.Status(t.Context(), spec.Machine)
	must.NoError(t, err)
	must.Nil(t, status.Exit)
	must.NoError(t, m.RemoveDangling(t.Context(), recordOf(t, m, spec.Machine)))
	must.Eq(t, nil, traces(t, m, spec.Machine))
}
