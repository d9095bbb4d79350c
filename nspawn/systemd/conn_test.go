package systemd_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"
	"github.com/shoenig/test/must"

	"nomad-driver-nspawn/nspawn/systemd"
	"nomad-driver-nspawn/nspawn/systemd/systemdtest"
)

// startFake returns a fake with one running unit.
func startFake(t *testing.T) (*systemdtest.Fake, *systemd.Conn, string) {
	t.Helper()
	fake := systemdtest.New(t)
	conn := fake.Conn()
	unit := unitName()
	must.NoError(t, conn.StartTransientUnit(t.Context(), unit, service("/bin/idle")))
	return fake, conn, unit
}

func soon(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	t.Cleanup(cancel)
	return ctx
}

func TestNoBus(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "none")
	t.Setenv("DBUS_SYSTEM_BUS_ADDRESS", "unix:path="+socket)
	conn := systemd.New(systemd.SystemBus)
	defer conn.Close()
	_, err := conn.Unit(t.Context(), "a.service")
	must.ErrorIs(t, err, os.ErrNotExist)
	must.StrContains(t, err.Error(), "get unit a.service: connect to system bus "+socket+": ")
	must.StrHasSuffix(t, "is dbus running?", err.Error())
}

// A bus that accepts connections and sends nothing must not block forever.
func TestSilentBus(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "bus")
	listener, err := net.Listen("unix", socket)
	must.NoError(t, err)
	defer listener.Close()
	conn := systemd.New(systemd.Bus("unix:path=" + socket))
	_, err = conn.Unit(soon(t), "a.service")
	must.ErrorIs(t, err, context.DeadlineExceeded)

	result := make(chan error)
	go func() {
		_, err := conn.Version(t.Context())
		result <- err
	}()
	_, err = listener.Accept() // the connection of the first call
	must.NoError(t, err)
	_, err = listener.Accept()
	must.NoError(t, err)
	closing := time.Now()
	conn.Close() // this ends the dial of the second call
	must.Error(t, <-result)
	must.Less(t, 5*time.Second, time.Since(closing))
}

func TestNoSystemdOnBus(t *testing.T) {
	fake, conn, unit := startFake(t)
	_, err := conn.Unit(t.Context(), unit)
	must.NoError(t, err)
	fake.Leave()
	ok, err := conn.Available(t.Context(), "org.freedesktop.systemd1")
	must.NoError(t, err)
	must.False(t, ok)
	_, err = conn.Unit(soon(t), unit)
	must.Error(t, err)

	// A systemd that returns in time is waited for, even with calls that must not be
	// repeated.
	result := make(chan error)
	go func() { result <- conn.StartTransientUnit(t.Context(), unitName(), service("/bin/idle")) }()
	fake.Join()
	must.NoError(t, <-result)
}

func TestClosed(t *testing.T) {
	_, conn, unit := startFake(t)
	states := conn.WatchUnit(t.Context(), unit)
	until(t, states, running)
	conn.Close()
	_, ok := <-states
	must.False(t, ok)
	_, err := conn.Unit(t.Context(), unit)
	must.Error(t, err)
	conn.Close()
}

func TestDeadlines(t *testing.T) {
	fake, conn, unit := startFake(t)
	release := fake.HoldJobs()
	held := unitName()
	err := conn.StartTransientUnit(soon(t), held, service("/bin/idle"))
	must.ErrorIs(t, err, context.DeadlineExceeded)
	must.StrContains(t, err.Error(), "start unit "+held+": wait for the job, which continues")
	must.ErrorIs(t, conn.StopUnit(soon(t), unit), context.DeadlineExceeded)
	release()

	fake.FreezeBus()
	defer fake.ThawBus()
	_, err = conn.Unit(soon(t), unit)
	must.ErrorIs(t, err, context.DeadlineExceeded)
	must.StrContains(t, err.Error(), "wait for reply of org.freedesktop.systemd1")
}

// If the connection breaks before the reply, a query is repeated, but nothing is started
// or killed twice.
func TestRepeatsOnlyWhatItMay(t *testing.T) {
	fake, _, unit := startFake(t)
	sent, up := make(chan string, 100), make(chan bool, 1)
	up <- true
	conn := systemd.New(func(context.Context) (*dbus.Conn, error) {
		<-up
		return dbus.Connect(fake.Address(), dbus.WithOutgoingInterceptor(func(m *dbus.Message) {
			sent <- m.Headers[dbus.FieldMember].Value().(string)
		}))
	})
	defer conn.Close()
	_, err := conn.Version(t.Context())
	must.NoError(t, err)
	fake.FreezeBus()
	asked, started, killed := make(chan error), make(chan error), make(chan error)
	go func() { _, err := conn.Unit(t.Context(), unit); asked <- err }()
	go func() { started <- conn.StartTransientUnit(t.Context(), unitName(), service("/bin/idle")) }()
	go func() { killed <- conn.KillUnit(t.Context(), unit, "main", 10) }()
	for waiting := 3; waiting > 0; {
		switch <-sent {
		case "GetUnit", "StartTransientUnit", "KillUnit":
			waiting--
		}
	}
	fake.StopBus()
	fake.StartBus()
	up <- true
	must.NoError(t, <-asked)
	must.Error(t, <-started)
	must.Error(t, <-killed)
	must.Eq(t, []string{unit}, fake.Units())
	must.SliceEmpty(t, fake.Signals(unit))
}

// The bus restarts while a start job runs: the result must arrive all the same.
func TestJobsOutliveConnections(t *testing.T) {
	breaks := map[string]func(*systemdtest.Fake){
		"bus":     func(f *systemdtest.Fake) { f.StopBus(); f.StartBus() },
		"systemd": (*systemdtest.Fake).Reexec,
	}
	for name, breakIt := range breaks {
		t.Run(name, func(t *testing.T) {
			fake, conn, unit := startFake(t)
			release := fake.HoldJobs()
			good, bad := unitName(), unitName()
			fake.JobResult(bad, "failed")
			started, failed, stopped := make(chan error), make(chan error), make(chan error)
			go func() { started <- conn.StartTransientUnit(t.Context(), good, service("/bin/idle")) }()
			go func() { failed <- conn.StartTransientUnit(t.Context(), bad, service("/bin/idle")) }()
			go func() { stopped <- conn.StopUnit(t.Context(), unit) }()
			until(t, watch(t, conn, good), hasJob)
			until(t, watch(t, conn, bad), hasJob)
			until(t, watch(t, conn, unit), hasJob)
			breakIt(fake)
			release()

			must.NoError(t, <-started)
			var job *systemd.JobError
			must.True(t, errors.As(<-failed, &job))
			must.Eq(t, "failed", job.Result)
			must.NoError(t, <-stopped)
			must.SliceNotContains(t, fake.Units(), unit)
		})
	}
}

func hasJob(s systemd.UnitState) bool { return s.JobID != 0 }

func watch(t *testing.T, conn *systemd.Conn, unit string) <-chan systemd.UnitState {
	t.Helper()
	return conn.WatchUnit(t.Context(), unit)
}

func TestJobResults(t *testing.T) {
	fake, conn, unit := startFake(t)
	for _, result := range []string{"canceled", "timeout", "dependency"} {
		fake.JobResult(unit, result)
		var job *systemd.JobError
		must.True(t, errors.As(conn.StopUnit(t.Context(), unit), &job))
		must.Eq(t, systemd.JobError{Unit: unit, Result: result}, *job)
	}
}

// The watch must see what has happened while there was no bus.
func TestWatchSeesWhatItMissed(t *testing.T) {
	fake, conn, unit := startFake(t)
	other := unitName()
	must.NoError(t, conn.StartTransientUnit(t.Context(), other, service("/bin/idle")))
	states, others := watch(t, conn, unit), watch(t, conn, other)
	until(t, states, running)
	until(t, others, running)
	fake.StopBus()
	fake.Exit(unit, 5)
	fake.Change(other, func(s *systemd.UnitState) { s.ActiveState = "inactive" })
	fake.StartBus()
	must.Eq(t, 5, until(t, states, exited).ExecMainStatus)
	until(t, others, missing)
}

// A unit may be unloaded long after it has become inactive.
func TestWatchSeesUnloading(t *testing.T) {
	fake, conn, unit := startFake(t)
	states := watch(t, conn, unit)
	release := fake.Pin(unit)
	must.NoError(t, conn.StopUnit(t.Context(), unit))
	until(t, states, func(s systemd.UnitState) bool {
		return s.LoadState == "loaded" && s.ActiveState == "inactive" && s.JobID == 0
	})
	time.Sleep(100 * time.Millisecond) // until the earlier signals have been processed
	release()
	until(t, states, missing)
}

func TestSlowReaderGetsTheLatest(t *testing.T) {
	fake, conn, unit := startFake(t)
	states := watch(t, conn, unit)
	for i := range 1000 {
		fake.Change(unit, func(s *systemd.UnitState) { s.NRestarts = uint32(i + 1) })
	}
	n := 0
	until(t, states, func(s systemd.UnitState) bool { n++; return s.NRestarts == 1000 })
	must.Less(t, 1000, n)
	select {
	case state := <-states:
		t.Fatalf("sent twice: %+v", state)
	case <-time.After(100 * time.Millisecond):
	}
}

// A request for a path whose unit is not loaded makes systemd send UnitNew and
// UnitRemoved. A watch must not answer these with another request.
func TestWatchOfMissingUnitIsQuiet(t *testing.T) {
	fake, conn, _ := startFake(t)
	raw, err := dbus.Connect(fake.Address())
	must.NoError(t, err)
	defer raw.Close()
	must.NoError(t, raw.AddMatchSignal(dbus.WithMatchMember("UnitNew")))
	signals := make(chan *dbus.Signal, 1000)
	raw.Signal(signals)
	states := watch(t, conn, "missing.service")
	until(t, states, missing)
	time.Sleep(100 * time.Millisecond)
	must.Eq(t, 0, len(signals))
}

// This needs more units than dbus-daemon allows match rules for one connection.
func TestManyWatches(t *testing.T) {
	fake := systemdtest.New(t)
	conn := fake.Conn()
	const n = 540
	var watches []<-chan systemd.UnitState
	for i := range n {
		unit := fmt.Sprintf("many-%d.service", i)
		must.NoError(t, conn.StartTransientUnit(t.Context(), unit, service("/bin/idle")))
		watches = append(watches, watch(t, conn, unit))
	}
	for round := range uint32(2) {
		for i := 0; i < n; i += 20 { // units with a rule of their own, and units without
			unit := fmt.Sprintf("many-%d.service", i)
			until(t, watches[i], running)
			fake.Change(unit, func(s *systemd.UnitState) { s.NRestarts = 2*round + 1 })
			until(t, watches[i], func(s systemd.UnitState) bool { return s.NRestarts == 2*round+1 })
			fake.Change(unit, func(s *systemd.UnitState) { s.NRestarts++ })
		}
		fake.StopBus()
		fake.StartBus()
	}
}

func TestNothingLeaks(t *testing.T) {
	fake, conn, unit := startFake(t)
	ctx, cancel := context.WithCancel(t.Context())
	goroutines, files := runtime.NumGoroutine(), openFiles(t)
	for range 5 {
		var all sync.WaitGroup
		for range 40 {
			all.Go(func() {
				ctx, cancel := context.WithCancel(ctx)
				defer cancel()
				states := conn.WatchUnit(ctx, unit)
				until(t, states, running)
				cancel()
				for range states {
				}
			})
		}
		all.Wait()
		must.ErrorIs(t, conn.StartTransientUnit(ctx, unit, nil), systemd.ErrUnitExists)
		must.NoError(t, conn.StopUnit(ctx, unit))
		must.NoError(t, conn.StartTransientUnit(ctx, unit, service("/bin/idle")))
		fake.StopBus()
		_, err := conn.Version(ctx)
		must.Error(t, err)
		fake.StartBus()
		_, err = conn.Version(ctx)
		must.NoError(t, err)
	}
	cancel()
	deadline := time.Now().Add(patience)
	for runtime.NumGoroutine() > goroutines || openFiles(t) > files {
		if time.Now().After(deadline) {
			stacks := make([]byte, 1<<20)
			t.Fatalf("goroutines %d → %d, files %d → %d\n%s", goroutines, runtime.NumGoroutine(), files, openFiles(t), stacks[:runtime.Stack(stacks, true)])
		}
		time.Sleep(10 * time.Millisecond)
	}
	// The bus must not keep match rules either: there are many more watches than it
	// allows.
	for range 600 {
		ctx, cancel := context.WithCancel(t.Context())
		states := conn.WatchUnit(ctx, unit)
		until(t, states, running)
		cancel()
	}
}

func openFiles(t *testing.T) int {
	entries, err := os.ReadDir("/proc/self/fd")
	must.NoError(t, err)
	return len(entries)
}

func TestMachines(t *testing.T) {
	fake, conn, _ := startFake(t)
	fake.SetMachine("a", systemd.Machine{Leader: 42, Unit: "a.service"})
	fake.SetMachine("b-1", systemd.Machine{Leader: 43, Unit: "b.service"})
	fake.SetImage("debian", systemd.Image{Path: "/var/lib/machines/debian", Type: "directory", ReadOnly: true})

	machine, err := conn.Machine(t.Context(), "b-1")
	must.NoError(t, err)
	must.Eq(t, systemd.Machine{Leader: 43, Unit: "b.service"}, machine)
	names, err := conn.ListMachines(t.Context())
	must.NoError(t, err)
	must.Eq(t, []string{"a", "b-1"}, names)
	image, err := conn.Image(t.Context(), "debian")
	must.NoError(t, err)
	must.Eq(t, systemd.Image{Path: "/var/lib/machines/debian", Type: "directory", ReadOnly: true}, image)
}

func BenchmarkUnit(b *testing.B) {
	fake := systemdtest.New(b)
	conn := fake.Conn()
	must.NoError(b, conn.StartTransientUnit(b.Context(), "a.service", service("/bin/idle")))
	for b.Loop() {
		_, err := conn.Unit(b.Context(), "a.service")
		must.NoError(b, err)
	}
}

// The version is requested again when systemd returns to the bus, as it may be another
// one.
func TestKnownVersion(t *testing.T) {
	fake := systemdtest.New(t)
	conn := fake.Conn()
	known := func() string {
		version, err := conn.KnownVersion(t.Context())
		must.NoError(t, err)
		return version
	}
	must.EqOp(t, systemdtest.Version, known())
	fake.SetVersion("300")
	must.EqOp(t, systemdtest.Version, known())
	fake.Reexec()
	for begin := time.Now(); known() != "300"; {
		must.Less(t, 10*time.Second, time.Since(begin))
	}
	fake.SetVersion("301")
	fake.StopBus()
	fake.StartBus()
	must.EqOp(t, "301", known())
}
