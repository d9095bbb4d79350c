package nspawn

import (
	"errors"
	"os"
	"testing"

	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"

	"nomad-driver-nspawn/nspawn/machine"
)

// startUnit starts a machine as far as a plugin gets that dies before it is up:
// nspawn has been executed.
func startUnit(t *testing.T, m *Manager, spec Spec) {
	d := mustPrepare(t, m, spec)
	spec.LogToJournal = true
	must.NoError(t, m.bus.StartTransientUnit(t.Context(), UnitName(spec.Machine), machine.Properties(spec, m.dirs.host(spec, d.base, d.tool))))
}

// mustPrepare prepares a machine as a plugin does that dies before it starts the unit.
func mustPrepare(t *testing.T, m *Manager, spec Spec) *draft {
	t.Helper()
	tool, err := m.lookTool(t.Context(), spec)
	must.NoError(t, err)
	d, err := m.prepare(t.Context(), spec, tool, func(string) {})
	must.NoError(t, err)
	return d
}

// A machine that is not up yet is not taken for one that is, nor for one that has
// ended: its network would be left as it is.
func TestHostAdoptHalfStarted(t *testing.T) {
	m := newManager(t)
	spec := newMachine(t, m, "sleep 1000")
	spec.Network = Network{Veth: true}
	startUnit(t, m, spec)
	must.NoError(t, m.bus.KillUnit(t.Context(), UnitName(spec.Machine), "main", int(unix.SIGSTOP)))
	adopted := make(chan error, 1)
	go func() {
		follower, err := m.Adopt(t.Context(), spec.Machine, spec.Mode)
		if err == nil {
			follower.Close()
		}
		adopted <- err
	}()
	must.NoError(t, m.bus.KillUnit(t.Context(), UnitName(spec.Machine), "main", int(unix.SIGCONT)))
	must.NoError(t, <-adopted)
	address, err := m.ConfigureVeth(t.Context(), spec.Machine)
	must.NoError(t, err)
	must.True(t, address.IsValid())
}

// The exit code of one that has ended is the payload's, unless nspawn has complained.
func TestHostAdoptEnded(t *testing.T) {
	m := newManager(t)
	for name, c := range map[string]struct {
		script, resolvConf, failure string
	}{
		"exit 1":     {script: "exit 1"},
		"exit 7":     {script: "exit 7"},
		"bad option": {script: "true", resolvConf: "perhaps", failure: "perhaps"},
	} {
		t.Run(name, func(t *testing.T) {
			spec := newMachine(t, m, c.script)
			spec.ResolvConf = c.resolvConf
			startUnit(t, m, spec)
			mustWait(t, m, spec.Machine)
			follower, err := m.Adopt(t.Context(), spec.Machine, spec.Mode)
			if c.failure == "" {
				must.NoError(t, err)
				follower.Close()
				return
			}
			var failed *StartError
			must.True(t, errors.As(err, &failed), must.Sprint(err))
			must.StrContains(t, failed.Message, c.failure)
		})
	}
}

// Without a socket, as on a full disk, a machine is followed all the same.
func TestHostFollowWithoutSocket(t *testing.T) {
	m := newManager(t)
	spec := newMachine(t, m, "while :; do sleep 1000 & wait $!; done")
	mustStart(t, m, spec)
	awaitTrap(t, m, spec)
	must.NoError(t, os.Remove(m.dirs.notify(spec.Machine)))
	must.NoError(t, os.MkdirAll(m.dirs.notify(spec.Machine)+"/in the way", 0o700))
	events := m.Follow(spec.Machine, spec.Mode).Events(t.Context())
	status, err := m.Status(t.Context(), spec.Machine)
	must.NoError(t, err)
	must.Eq(t, Event{Kind: Started, Time: status.Started}, <-events)
	must.NoError(t, m.Signal(t.Context(), spec.Machine, spec.Mode, unix.SIGKILL))
	must.Eq(t, Ended, (<-events).Kind)
}
