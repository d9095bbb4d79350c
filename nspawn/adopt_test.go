package nspawn

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"

	"nomad-driver-nspawn/nspawn/gate"
	"nomad-driver-nspawn/nspawn/gate/inside"
	"nomad-driver-nspawn/nspawn/machine"
	"nomad-driver-nspawn/nspawn/process"
	"nomad-driver-nspawn/nspawn/programs"
)

// startUnit starts a machine up to the point at which a plugin dies before the machine is
// up: nspawn has been executed.
func startUnit(t *testing.T, m *Manager, spec machine.Spec) {
	host := mustPrepare(t, m, spec)
	spec.LogToJournal = true
	must.NoError(t, m.bus.StartTransientUnit(t.Context(), machine.UnitName(spec.Machine), machine.Properties(spec, host)))
}

// mustPrepare prepares a machine like a plugin that dies before it starts the unit.
func mustPrepare(t *testing.T, m *Manager, spec machine.Spec) machine.Host {
	t.Helper()
	found, err := programs.Find(t.Context(), m.bus, m.dirs.Pins())
	must.NoError(t, err)
	stage, err := m.parts.NewStage()
	must.NoError(t, err)
	defer stage.Close()
	_, host, err := m.parts.Prepare(t.Context(), spec, found, stage, func(string) {})
	must.NoError(t, err)
	return host
}

// adopt adopts a machine like a driver whose predecessor died.
func adopt(t *testing.T, m *Manager, spec machine.Spec, steps ...Step) (*Follower, error) {
	follower, err := m.Adopt(t.Context(), spec.Machine, spec.Mode, Begin{Instructions: spec.Instructions(), Steps: steps})
	if err == nil {
		t.Cleanup(follower.Close)
	}
	return follower, err
}

// TestHostAdoptHalfStarted checks that a waiting payload begins after the steps of the
// plugin that adopts it, no matter how far nspawn has come.
func TestHostAdoptHalfStarted(t *testing.T) {
	m := newManager(t)
	for _, mode := range []machine.Mode{machine.ProcessOne, machine.ProcessTwo} {
		spec := newMachine(t, m, "exit 7")
		spec.Mode = mode
		startUnit(t, m, spec)
		must.NoError(t, m.bus.KillUnit(t.Context(), machine.UnitName(spec.Machine), "main", int(unix.SIGSTOP)))
		go func() { _ = m.bus.KillUnit(t.Context(), machine.UnitName(spec.Machine), "main", int(unix.SIGCONT)) }()
		taken := 0
		_, err := adopt(t, m, spec, func(_ context.Context, w Waiting) error {
			leader, err := m.leader(t.Context(), spec.Machine)
			must.NoError(t, err)
			must.Eq(t, leader.PID, w.Leader)
			taken++
			return nil
		})
		must.NoError(t, err)
		must.Eq(t, Exit{Code: 7}, mustWait(t, m, spec.Machine))

		// The next plugin, to which Nomad repeats the call, finds that the payload has
		// begun and ended.
		_, err = adopt(t, m, spec)
		must.NoError(t, err)
		must.Eq(t, 1, taken)
	}
}

// startAndAwait starts a machine as a plugin does that dies before it gives the word.
func startAndAwait(t *testing.T, m *Manager, spec machine.Spec) waiting {
	startUnit(t, m, spec)
	g, err := gate.Listen(m.dirs.Gate(spec.Machine))
	must.NoError(t, err)
	w, err := m.await(t.Context(), spec.Machine, spec.Mode, g)
	must.NoError(t, err)
	return w
}

// recordTold leaves the record of a plugin that died before it knew that the payload begins.
func recordTold(t *testing.T, m *Manager, spec machine.Spec, leader process.Process) {
	identity, err := leader.Identity()
	must.NoError(t, err)
	must.NoError(t, os.WriteFile(m.dirs.Begun(spec.Machine), []byte(identity+" told\n"), 0o600))
}

// TestHostAdoptBegun checks that a running machine is followed, even if its plugin died
// right after it gave the word.
func TestHostAdoptBegun(t *testing.T) {
	m := newManager(t)
	for _, confirmed := range []bool{true, false} {
		spec := newMachine(t, m, "sleep 1000; exit 7")
		mustStart(t, m, spec)
		leader, err := m.leader(t.Context(), spec.Machine)
		must.NoError(t, err)
		if !confirmed {
			recordTold(t, m, spec, leader)
		}
		_, err = adopt(t, m, spec, func(context.Context, Waiting) error { return errors.New("not again") })
		must.NoError(t, err)
		_, _, err = m.admit(spec.Machine, spec.Mode, gate.Peer{PID: leader.PID})
		must.Error(t, err)
	}
}

// TestHostAdoptBeforeTheWord checks that the next plugin starts the payload if a plugin
// died between its record and the word.
func TestHostAdoptBeforeTheWord(t *testing.T) {
	m := newManager(t)
	spec := newMachine(t, m, "exit 7")
	w := startAndAwait(t, m, spec)
	recordTold(t, m, spec, w.leader)
	w.Close()
	_, err := adopt(t, m, spec)
	must.NoError(t, err)
	must.Eq(t, Exit{Code: 7}, mustWait(t, m, spec.Machine))
}

// A plugin died after it had given the word, and the payload is executed only when the next
// one is there already.
func TestHostAdoptAfterTheWord(t *testing.T) {
	m := newManager(t)
	spec := newMachine(t, m, "sleep 1000; exit 7")
	w := startAndAwait(t, m, spec)
	must.NoError(t, w.payload.Signal(unix.SIGSTOP))
	died, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	must.NoError(t, m.begin(died, spec.Machine, w, Begin{Instructions: spec.Instructions()}))
	recordTold(t, m, spec, w.leader)
	socket := filepath.Join(m.dirs.Gate(spec.Machine), inside.Socket)
	before, err := os.Stat(socket)
	must.NoError(t, err)

	adopted := make(chan error, 1)
	go func() {
		_, err := adopt(t, m, spec, func(context.Context, Waiting) error { return errors.New("not again") })
		adopted <- err
	}()
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if now, err := os.Stat(socket); err == nil && !os.SameFile(before, now) {
			break // it waits at the gate
		}
		must.True(t, time.Now().Before(end))
	}
	must.NoError(t, w.payload.Signal(unix.SIGCONT))
	must.NoError(t, <-adopted)
	status, err := m.Status(t.Context(), spec.Machine)
	must.NoError(t, err)
	must.Nil(t, status.Exit)
}

// A start that nspawn could not do is no machine to adopt.
func TestHostAdoptFailed(t *testing.T) {
	m := newManager(t)
	spec := newMachine(t, m, "true")
	spec.ResolvConf = "perhaps"
	startUnit(t, m, spec)
	_, err := adopt(t, m, spec)
	var failed *StartError
	must.True(t, errors.As(err, &failed), must.Sprint(err))
	must.StrContains(t, failed.Message, "perhaps")
}

// TestHostFollowWithoutSocket checks that a machine is followed even if no socket can be
// made, for example on a full disk.
func TestHostFollowWithoutSocket(t *testing.T) {
	m := newManager(t)
	spec := newMachine(t, m, "while :; do sleep 1000 & wait $!; done")
	mustStart(t, m, spec)
	awaitTrap(t, m, spec)
	must.NoError(t, os.Remove(m.dirs.Notify(spec.Machine)))
	must.NoError(t, os.MkdirAll(m.dirs.Notify(spec.Machine)+"/in the way", 0o700))
	events := m.Follow(spec.Machine, spec.Mode, Begin{}).Events(t.Context())
	status, err := m.Status(t.Context(), spec.Machine)
	must.NoError(t, err)
	must.Eq(t, Event{Kind: Started, Time: status.Started}, <-events)
	must.NoError(t, m.Signal(t.Context(), spec.Machine, spec.Mode, unix.SIGKILL))
	must.Eq(t, Ended, (<-events).Kind)
}
