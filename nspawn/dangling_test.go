package nspawn

import (
	"context"
	"errors"
	"fmt"
	"os"
	"regexp"
	"slices"
	"testing"
	"time"

	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"

	"nomad-driver-nspawn/nspawn/systemd"
)

func recordOf(t *testing.T, m *Manager, machine string) Record {
	records, err := m.Machines(t.Context())
	must.NoError(t, err)
	i := slices.IndexFunc(records, func(r Record) bool { return r.Machine == machine })
	must.NotEq(t, -1, i)
	return records[i]
}

// What a killed plugin leaves of a start or of a removal is found by either
// directory, and removed.
func TestHostFilesWithoutUnit(t *testing.T) {
	m := newManager(t)
	spec := newMachine(t, m, "true")
	mustPrepare(t, m, spec)
	record := recordOf(t, m, spec.Machine)
	must.Eq(t, Record{Machine: spec.Machine}, record)
	must.NoError(t, m.RemoveDangling(t.Context(), record))
	must.Eq(t, nil, traces(t, m, spec.Machine))

	must.NoError(t, os.MkdirAll(m.dirs.writable(spec.Machine), 0o700)) // as after a reboot
	must.NoError(t, m.RemoveDangling(t.Context(), recordOf(t, m, spec.Machine)))
	must.Eq(t, nil, traces(t, m, spec.Machine))
}

// A machine that is being started, or was started again since it was looked at,
// is left alone.
func TestHostRemoveDanglingLeavesOthers(t *testing.T) {
	m := newManager(t)
	spec := newMachine(t, m, "sleep 1000")
	lock, err := m.lock(spec.Machine)
	must.NoError(t, err)
	mustPrepare(t, m, spec)
	must.NoError(t, m.RemoveDangling(t.Context(), recordOf(t, m, spec.Machine)))
	_, err = os.Stat(m.dirs.machine(spec.Machine))
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

// Who waits for a machine that is being started gets it afterwards.
func TestLock(t *testing.T) {
	m := NewManager(systemd.New(systemd.SystemBus), Dirs{Run: t.TempDir()}, nil)
	first, err := m.lock("machine")
	must.NoError(t, err)
	_, err = m.tryLock("machine")
	must.True(t, errors.Is(err, errLocked), must.Sprint(err))
	other, err := m.tryLock("other")
	must.NoError(t, err)
	must.NoError(t, other.Close())

	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	go func() {
		defer cancel()
		if second, err := m.lock("machine"); err == nil {
			second.Close()
		}
	}()
	for !awaited(t, first) && ctx.Err() == nil {
		time.Sleep(time.Millisecond)
	}
	must.NoError(t, ctx.Err())
	must.NoError(t, first.Close())
	<-ctx.Done()
	must.ErrorIs(t, ctx.Err(), context.Canceled)
}

// awaited tells whether somebody waits for a lock on the file (proc_locks(5)).
func awaited(t *testing.T, file *os.File) bool {
	var stat unix.Stat_t
	must.NoError(t, unix.Fstat(int(file.Fd()), &stat))
	locks, err := os.ReadFile("/proc/locks")
	must.NoError(t, err)
	return regexp.MustCompile(fmt.Sprintf(`-> OFDLCK .* \w+:\w+:%d `, stat.Ino)).Match(locks)
}
