// Package systemdtest provides a fake systemd and systemd-machined for tests. They speak
// real D-Bus over a private dbus-daemon, need no privileges, and run no programs. Their
// units end when the test ends them.
package systemdtest

import (
	"maps"
	"slices"
	"sync"
	"syscall"
	"testing"

	"github.com/godbus/dbus/v5"
	"github.com/shoenig/test/must"

	"nomad-driver-nspawn/nspawn/systemd"
)

// Fake is a systemd and a systemd-machined on a bus of their own. To package systemd, it
// behaves like systemd 252.
type Fake struct {
	t   testing.TB
	bus *bus

	mu          sync.Mutex
	conn        *dbus.Conn // nil while off the bus
	version     string
	subscribers map[dbus.Sender]bool
	units       map[string]*unit
	machines    map[string]systemd.Machine
	images      map[string]systemd.Image
	results     map[string]string // result of the next job, by unit
	hold        chan struct{}     // jobs end only after this, or ended, is closed
	ended       chan struct{}
	onStart     func(name string, properties map[string]dbus.Variant)
	lastJob     uint32
	lastPID     uint32
	jobs        sync.WaitGroup
}

// New starts a Fake that ends with the test. If dbus-daemon is not installed, New skips
// the test, or fails it if the environment has CI=true.
func New(t testing.TB) *Fake {
	t.Helper()
	f := &Fake{
		t:        t,
		bus:      newBus(t),
		units:    make(map[string]*unit),
		machines: make(map[string]systemd.Machine),
		images:   make(map[string]systemd.Image),
		results:  make(map[string]string),
		hold:     make(chan struct{}),
		ended:    make(chan struct{}),
		lastPID:  1000,
		version:  Version,
	}
	close(f.hold)
	f.Join()
	t.Cleanup(f.end)
	return f
}

func (f *Fake) end() {
	f.Leave()
	close(f.ended)
	f.jobs.Wait()
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, u := range f.units {
		u.close()
	}
}

// Address returns the D-Bus address of the bus.
func (f *Fake) Address() string { return f.bus.address() }

// Conn returns a client of the fake that is closed when the test ends.
func (f *Fake) Conn() *systemd.Conn {
	conn := systemd.New(systemd.Bus(f.Address()))
	f.t.Cleanup(conn.Close)
	return conn
}

// Leave removes systemd and machined from the bus.
func (f *Fake) Leave() {
	f.mu.Lock()
	conn := f.conn
	f.conn = nil
	f.mu.Unlock()
	if conn != nil {
		conn.Close()
	}
}

// Join returns systemd and machined to the bus, with their units but without subscribers.
func (f *Fake) Join() {
	f.t.Helper()
	conn, err := dbus.Connect(f.Address())
	must.NoError(f.t, err)
	must.NoError(f.t, conn.Export(manager{f}, systemdPath, managerIface))
	must.NoError(f.t, conn.Export(managerProperties{f}, systemdPath, propertyIface))
	must.NoError(f.t, conn.ExportSubtree(unitProperties{f}, unitPrefix, propertyIface))
	must.NoError(f.t, conn.Export(machined{f}, machinePath, machinedIface))
	must.NoError(f.t, conn.ExportSubtree(machineProperties{f}, machinePath, propertyIface))

	f.mu.Lock()
	defer f.mu.Unlock()
	f.conn = conn
	f.subscribers = make(map[dbus.Sender]bool)
	for _, name := range []string{systemdName, machinedName} {
		reply, err := conn.RequestName(name, dbus.NameFlagDoNotQueue)
		must.NoError(f.t, err)
		must.Eq(f.t, dbus.RequestNameReplyPrimaryOwner, reply)
	}
}

// SetVersion changes systemd's version.
func (f *Fake) SetVersion(version string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.version = version
}

// Reexec behaves like "systemctl daemon-reexec": systemd leaves the bus for a moment.
func (f *Fake) Reexec() {
	f.Leave()
	f.Join()
}

// StopBus stops the bus, which ends all connections.
func (f *Fake) StopBus() {
	f.Leave()
	f.bus.stop()
}

// StartBus starts the bus again, at the same address, after StopBus.
func (f *Fake) StartBus() {
	f.bus.start()
	f.Join()
}

// FreezeBus makes the bus accept messages without answering them, until ThawBus.
func (f *Fake) FreezeBus() { must.NoError(f.t, f.bus.daemon.Process.Signal(syscall.SIGSTOP)) }

// ThawBus reverts FreezeBus.
func (f *Fake) ThawBus() { must.NoError(f.t, f.bus.daemon.Process.Signal(syscall.SIGCONT)) }

// JobResult sets the result of a unit's next job. The default is "done". With another
// result, a start job makes the unit fail, and a stop job leaves the unit as it is.
func (f *Fake) JobResult(unit, result string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.results[unit] = result
}

// HoldJobs makes all jobs hang until release is called.
func (f *Fake) HoldJobs() (release func()) {
	hold := make(chan struct{})
	f.mu.Lock()
	defer f.mu.Unlock()
	f.hold = hold
	return sync.OnceFunc(func() { close(hold) })
}

// OnStart sets a function that is called whenever a unit has been started, before its
// start job ends. The function may act as the unit's program.
func (f *Fake) OnStart(fn func(unit string, properties map[string]dbus.Variant)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.onStart = fn
}

// Exit ends the main process of a unit with an exit status.
func (f *Fake) Exit(unit string, status int) {
	f.Change(unit, func(s *systemd.UnitState) { exit(s, cldExited, status) })
}

// Kill ends the main process of a unit with a signal.
func (f *Fake) Kill(unit string, signal syscall.Signal) {
	f.Change(unit, func(s *systemd.UnitState) { exit(s, cldKilled, int(signal)) })
}

// Change changes the state of a loaded unit. If that makes the unit inactive, it is
// unloaded, as systemd does with a transient unit.
func (f *Fake) Change(unit string, change func(*systemd.UnitState)) {
	f.t.Helper()
	f.mu.Lock()
	defer f.mu.Unlock()
	u := f.units[unit]
	must.NotNil(f.t, u, must.Sprintf("unit %s is not loaded", unit))
	change(&u.state)
	f.changed(u)
}

// Pin keeps a unit loaded even when it is inactive, as another client's reference does,
// until release is called.
func (f *Fake) Pin(unit string) (release func()) {
	f.t.Helper()
	f.mu.Lock()
	defer f.mu.Unlock()
	u := f.units[unit]
	must.NotNil(f.t, u, must.Sprintf("unit %s is not loaded", unit))
	u.pinned = true
	return func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		u.pinned = false
		f.collect(u)
	}
}

// Units returns the sorted names of the loaded units.
func (f *Fake) Units() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Sorted(maps.Keys(f.units))
}

// Properties returns the properties with which a loaded unit was started, or which
// SetUnitProperties has set. File descriptors are replaced by systemd's own duplicates,
// which are open while the unit is loaded.
func (f *Fake) Properties(unit string) map[string]dbus.Variant {
	f.t.Helper()
	f.mu.Lock()
	defer f.mu.Unlock()
	u := f.units[unit]
	must.NotNil(f.t, u, must.Sprintf("unit %s is not loaded", unit))
	return maps.Clone(u.properties)
}

// Signals returns the signals that KillUnit has sent to a loaded unit.
func (f *Fake) Signals(unit string) []syscall.Signal {
	f.mu.Lock()
	defer f.mu.Unlock()
	if u := f.units[unit]; u != nil {
		return slices.Clone(u.signals)
	}
	return nil
}

// SetMachine registers a machine.
func (f *Fake) SetMachine(name string, m systemd.Machine) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.machines[name] = m
}

// SetImage adds an image.
func (f *Fake) SetImage(name string, i systemd.Image) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.images[name] = i
}

// emit sends a signal of systemd if there is a subscriber. The caller holds mu.
func (f *Fake) emit(path dbus.ObjectPath, name string, values ...any) {
	if f.conn != nil && len(f.subscribers) > 0 {
		_ = f.conn.Emit(path, name, values...) // fails only if the bus is gone
	}
}
