package systemd_test

import (
	"bufio"
	"context"
	"crypto/rand"
	"errors"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"
	"github.com/shoenig/test/must"

	"nomad-driver-nspawn/nspawn/systemd"
)

// patience is how long a test waits for a state that should be reached at once.
const patience = 20 * time.Second

// world is a real or a fake systemd: the tests of this file hold for both.
type world struct {
	conn *systemd.Conn

	// idle returns the properties of a unit whose program only waits for exit.
	idle func(t *testing.T, unit string) []systemd.Property
	exit func(t *testing.T, unit string, status int)

	// broken returns the properties of a unit that cannot be started.
	broken func(t *testing.T, unit string) []systemd.Property
	// saying returns the properties of a unit whose program prints a line.
	saying func(t *testing.T, unit, line string) []systemd.Property

	// slow returns the properties of an idle unit whose start ends when release is
	// called.
	slow func(t *testing.T, unit string) (properties []systemd.Property, release func())

	machined   func(t *testing.T) // makes machined answer; may be nil
	reexec     func(t *testing.T)
	restartBus func(t *testing.T)
}

func property(name string, value any) systemd.Property {
	return systemd.Property{Name: name, Value: dbus.MakeVariant(value)}
}

// service returns the properties of a service. Its argv is not expanded.
func service(argv ...string) []systemd.Property {
	type command struct {
		Path  string
		Argv  []string
		Flags []string
	}
	return append(lasting(), property("ExecStartEx", []command{{argv[0], argv, []string{"no-env-expand"}}}))
}

// plainCommand returns the property for a command without "$". Systemd 252 writes
// ExecStartEx= to the transient unit's file and then does not know it there. So only this
// form can be started again after daemon-reload and daemon-reexec.
func plainCommand(name string, argv ...string) systemd.Property {
	type command struct {
		Path             string
		Argv             []string
		UncleanIsFailure bool
	}
	return property(name, []command{{argv[0], argv, false}})
}

// lasting returns the properties of a service that remains loaded after its end.
func lasting() []systemd.Property {
	return []systemd.Property{
		property("Description", "a test of nomad-driver-nspawn"),
		property("Type", "exec"),
		property("RemainAfterExit", true),
	}
}

// unitName returns a name with characters that must be escaped in an object path.
func unitName() string { return "nomad-driver_test." + strings.ToLower(rand.Text()[:8]) + ".service" }

// start starts an idle unit, which is removed when the test ends.
func (w *world) start(t *testing.T) (unit string) {
	t.Helper()
	unit = unitName()
	must.NoError(t, w.conn.StartTransientUnit(t.Context(), unit, w.idle(t, unit)))
	t.Cleanup(func() { w.remove(t, unit) })
	return unit
}

func (w *world) remove(t *testing.T, unit string) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	must.NoError(t, w.conn.StopUnit(ctx, unit))
	must.NoError(t, w.conn.ResetFailedUnit(ctx, unit))
}

func (w *world) watch(t *testing.T, unit string) <-chan systemd.UnitState {
	t.Helper()
	return w.conn.WatchUnit(t.Context(), unit)
}

// until reads states until one fulfills the condition, and returns it.
func until(t *testing.T, states <-chan systemd.UnitState, wanted func(systemd.UnitState) bool) systemd.UnitState {
	t.Helper()
	timeout := time.After(patience)
	var last systemd.UnitState
	for {
		select {
		case state, ok := <-states:
			must.True(t, ok, must.Sprint("watch ended"))
			if wanted(state) {
				return state
			}
			last = state
		case <-timeout:
			t.Fatalf("state did not come; the last one was %+v", last)
		}
	}
}

func running(s systemd.UnitState) bool {
	return s.ActiveState == "active" && s.SubState == "running" && s.JobID == 0
}
func exited(s systemd.UnitState) bool { return s.ExecMainCode != 0 && s.MainPID == 0 }
func missing(s systemd.UnitState) bool {
	return s.LoadState == "not-found"
}

func testLifeOfUnit(t *testing.T, w *world) {
	unit := w.start(t)
	states := w.watch(t, unit)
	state := until(t, states, running)
	must.Positive(t, state.MainPID)
	must.Eq(t, state.MainPID, state.ExecMainPID)
	must.Eq(t, 32, len(state.InvocationID))
	must.Eq(t, "a test of nomad-driver-nspawn", state.Description)
	must.Eq(t, "system.slice", state.Slice)
	must.Eq(t, "/system.slice/"+unit, state.ControlGroup)
	must.Less(t, time.Minute, time.Since(state.ExecMainStart))

	w.exit(t, unit, 7)
	state = until(t, states, exited)
	must.Eq(t, "failed", state.ActiveState)
	must.Eq(t, "exit-code", state.Result)
	must.Eq(t, 1, state.ExecMainCode) // CLD_EXITED
	must.Eq(t, 7, state.ExecMainStatus)
	must.False(t, state.ExecMainExit.Before(state.ExecMainStart))

	asked, err := w.conn.Unit(t.Context(), unit)
	must.NoError(t, err)
	must.Eq(t, state, asked)

	err = w.conn.StartTransientUnit(t.Context(), unit, w.idle(t, unit))
	must.ErrorIs(t, err, systemd.ErrUnitExists)

	must.NoError(t, w.conn.StopUnit(t.Context(), unit))
	asked, err = w.conn.Unit(t.Context(), unit)
	must.NoError(t, err, must.Sprint("a failed unit stays"))
	must.Eq(t, 7, asked.ExecMainStatus)
	must.NoError(t, w.conn.ResetFailedUnit(t.Context(), unit))
	until(t, states, missing)
}

func testExitZeroStays(t *testing.T, w *world) {
	unit := w.start(t)
	states := w.watch(t, unit)
	w.exit(t, unit, 0)
	state := until(t, states, exited)
	must.Eq(t, "active", state.ActiveState)
	must.Eq(t, "exited", state.SubState)
	must.Eq(t, "success", state.Result)
	must.Eq(t, 0, state.ExecMainStatus)

	must.NoError(t, w.conn.StopUnit(t.Context(), unit))
	until(t, states, missing)
	_, err := w.conn.Unit(t.Context(), unit)
	must.ErrorIs(t, err, systemd.ErrNotFound)

	must.NoError(t, w.conn.StartTransientUnit(t.Context(), unit, w.idle(t, unit)), must.Sprint("the name is free again"))
	until(t, states, running)
}

// testWatchProcess expects no state while the watcher knows it, and then the end of the
// process.
func testWatchProcess(t *testing.T, w *world) {
	unit := w.start(t)
	pid, err := w.conn.MainPID(t.Context(), unit)
	must.NoError(t, err)
	must.Positive(t, pid)
	states := w.conn.WatchProcess(t.Context(), unit, pid)
	w.exit(t, unit, 7)
	state := until(t, states, func(systemd.UnitState) bool { return true })
	must.True(t, exited(state), must.Sprint("the first state is ", state))

	// The main process is not the one that the watcher knows.
	state = until(t, w.conn.WatchProcess(t.Context(), unit, pid), func(systemd.UnitState) bool { return true })
	must.Eq(t, 7, state.ExecMainStatus)
	pid, err = w.conn.MainPID(t.Context(), unit)
	must.NoError(t, err)
	must.Zero(t, pid)

	_, err = w.conn.MainPID(t.Context(), unitName())
	must.ErrorIs(t, err, systemd.ErrNotFound)
	until(t, w.conn.WatchProcess(t.Context(), unitName(), 1), missing)
}

func testUnitNotLoaded(t *testing.T, w *world) {
	unit := unitName()
	_, err := w.conn.Unit(t.Context(), unit)
	must.ErrorIs(t, err, systemd.ErrNotFound)
	must.StrContains(t, err.Error(), "get unit "+unit)
	var named *systemd.Error
	must.True(t, errors.As(err, &named))
	must.Eq(t, unit, named.Name)

	must.NoError(t, w.conn.StopUnit(t.Context(), unit))
	must.NoError(t, w.conn.ResetFailedUnit(t.Context(), unit))
	must.ErrorIs(t, w.conn.KillUnit(t.Context(), unit, "main", 9), systemd.ErrNotFound)
	must.ErrorIs(t, w.conn.SetUnitProperties(t.Context(), unit, true, property("CPUWeight", uint64(50))), systemd.ErrNotFound)
	until(t, w.watch(t, unit), missing)
}

func testKill(t *testing.T, w *world) {
	unit := w.start(t)
	states := w.watch(t, unit)
	must.NoError(t, w.conn.KillUnit(t.Context(), unit, "main", 9))
	state := until(t, states, exited)
	must.Eq(t, "signal", state.Result)
	must.Eq(t, 2, state.ExecMainCode) // CLD_KILLED
	must.Eq(t, 9, state.ExecMainStatus)
	must.ErrorIs(t, w.conn.KillUnit(t.Context(), unit, "main", 9), systemd.ErrNoProcess)
}

func testStartFails(t *testing.T, w *world) {
	unit := unitName()
	defer w.remove(t, unit)
	err := w.conn.StartTransientUnit(t.Context(), unit, w.broken(t, unit))
	var failed *systemd.JobError
	must.True(t, errors.As(err, &failed), must.Sprint(err))
	must.Eq(t, systemd.JobError{Unit: unit, Result: "failed"}, *failed)
	state, err := w.conn.Unit(t.Context(), unit)
	must.NoError(t, err)
	must.Eq(t, "failed", state.ActiveState)
}

// testOutput passes a file descriptor. systemd must have its own duplicate, and close it
// together with the unit.
func testOutput(t *testing.T, w *world) {
	unit := unitName()
	defer w.remove(t, unit)
	r, pipe, err := os.Pipe()
	must.NoError(t, err)
	defer r.Close()
	properties := append(w.saying(t, unit, "hello"), property("StandardOutputFileDescriptor", dbus.UnixFD(pipe.Fd())))
	must.NoError(t, w.conn.StartTransientUnit(t.Context(), unit, properties))
	must.NoError(t, pipe.Close())
	must.NoError(t, r.SetReadDeadline(time.Now().Add(patience)))
	output := bufio.NewReader(r)
	line, err := output.ReadString('\n')
	must.NoError(t, err)
	must.Eq(t, "hello\n", line)
	w.remove(t, unit)
	_, err = output.ReadByte()
	must.EqError(t, err, "EOF")
}

func testReexecWhileWatching(t *testing.T, w *world) {
	for _, status := range []int{0, 3} {
		unit := w.start(t)
		states := w.watch(t, unit)
		until(t, states, running)
		w.reexec(t)
		w.exit(t, unit, status)
		must.Eq(t, int32(status), until(t, states, exited).ExecMainStatus)
		_, err := w.conn.Unit(t.Context(), unit)
		must.NoError(t, err, must.Sprint("the unit stays"))
	}
}

func testRestartOfBusWhileWatching(t *testing.T, w *world) {
	unit := w.start(t)
	states := w.watch(t, unit)
	until(t, states, running)
	for range 3 {
		w.restartBus(t)
		_, err := w.conn.Unit(t.Context(), unit)
		must.NoError(t, err, must.Sprint("the connection is replaced, the call repeated"))
	}
	w.exit(t, unit, 4)
	must.Eq(t, 4, until(t, states, exited).ExecMainStatus)
	must.NoError(t, w.conn.StopUnit(t.Context(), unit))
}

// testStartOutlivesConnection makes the bus or systemd disappear while a start job runs,
// so that the signal of its end is lost.
func testStartOutlivesConnection(t *testing.T, w *world) {
	for name, leave := range map[string]func(*testing.T){"reexec": w.reexec, "restart of bus": w.restartBus} {
		t.Run(name, func(t *testing.T) {
			unit := unitName()
			defer w.remove(t, unit)
			properties, release := w.slow(t, unit)
			started := make(chan error, 1)
			go func() { started <- w.conn.StartTransientUnit(t.Context(), unit, properties) }()
			until(t, w.watch(t, unit), func(s systemd.UnitState) bool { return s.JobID != 0 })
			leave(t)
			select {
			case err := <-started:
				t.Fatalf("start ended early: %v", err)
			case <-time.After(300 * time.Millisecond):
			}
			release()
			must.NoError(t, <-started)
			state, err := w.conn.Unit(t.Context(), unit)
			must.NoError(t, err)
			must.Eq(t, "running", state.SubState)
		})
	}
}

func testLists(t *testing.T, w *world) {
	a, b := w.start(t), w.start(t)
	names, err := w.conn.UnitsByPattern(t.Context(), "nomad-driver_test.*.service")
	must.NoError(t, err)
	must.SliceContains(t, names, a)
	must.SliceContains(t, names, b)
	must.True(t, slices.IsSorted(names))
	names, err = w.conn.UnitsByPattern(t.Context(), unitName())
	must.NoError(t, err)
	must.SliceEmpty(t, names)
}

func testFacts(t *testing.T, w *world) {
	version, err := w.conn.Version(t.Context())
	must.NoError(t, err)
	must.RegexMatch(t, regexpVersion, version)
	features, err := w.conn.Features(t.Context())
	must.NoError(t, err)
	must.StrContains(t, features, "+PAM")

	for name, want := range map[string]bool{"org.freedesktop.machine1": true, "org.freedesktop.systemd1": true, "org.example.none": false} {
		got, err := w.conn.Available(t.Context(), name)
		must.NoError(t, err)
		must.Eq(t, want, got, must.Sprint(name))
	}
	if w.machined != nil {
		w.machined(t)
	}
	_, err = w.conn.Machine(t.Context(), "no-such-machine")
	must.ErrorIs(t, err, systemd.ErrNotFound)
	_, err = w.conn.Image(t.Context(), "no-such-image")
	must.ErrorIs(t, err, systemd.ErrNotFound)
	_, err = w.conn.ListMachines(t.Context())
	must.NoError(t, err)
}

func testSetProperties(t *testing.T, w *world) {
	unit := w.start(t)
	must.NoError(t, w.conn.SetUnitProperties(t.Context(), unit, true, property("TasksMax", uint64(77))))
}

// testManyAtOnce starts, watches and stops units at the same time.
func testManyAtOnce(t *testing.T, w *world) {
	t.Run("units", func(t *testing.T) {
		for range 20 {
			t.Run("", func(t *testing.T) {
				t.Parallel()
				unit := unitName()
				states := w.watch(t, unit)
				must.NoError(t, w.conn.StartTransientUnit(t.Context(), unit, w.idle(t, unit)))
				until(t, states, running)
				must.NoError(t, w.conn.StopUnit(t.Context(), unit))
				until(t, states, missing)
			})
		}
	})
}

var shared = map[string]func(*testing.T, *world){
	"life of a unit":                testLifeOfUnit,
	"exit zero stays":               testExitZeroStays,
	"watch process":                 testWatchProcess,
	"unit not loaded":               testUnitNotLoaded,
	"kill":                          testKill,
	"start fails":                   testStartFails,
	"output":                        testOutput,
	"reexec while watching":         testReexecWhileWatching,
	"restart of bus while watching": testRestartOfBusWhileWatching,
	"start outlives connection":     testStartOutlivesConnection,
	"lists":                         testLists,
	"facts":                         testFacts,
	"set properties":                testSetProperties,
	"many at once":                  testManyAtOnce,
}
