package systemdtest

import (
	"fmt"
	"maps"
	"path"
	"slices"
	"syscall"

	sd "github.com/coreos/go-systemd/v22/dbus"
	"github.com/godbus/dbus/v5"
)

const (
	systemdName   = "org.freedesktop.systemd1"
	systemdPath   = dbus.ObjectPath("/org/freedesktop/systemd1")
	unitPrefix    = systemdPath + "/unit"
	managerIface  = "org.freedesktop.systemd1.Manager"
	unitIface     = "org.freedesktop.systemd1.Unit"
	serviceIface  = "org.freedesktop.systemd1.Service"
	propertyIface = "org.freedesktop.DBus.Properties"
)

// Version and Features are the fake's default version and its features.
const (
	Version  = "252.39-1~deb12u1"
	Features = "+PAM +AUDIT -SELINUX"
)

func refuse(name, format string, args ...any) *dbus.Error {
	return dbus.NewError(name, []any{fmt.Sprintf(format, args...)})
}

func notLoaded(unit string) *dbus.Error {
	return refuse("org.freedesktop.systemd1.NoSuchUnit", "Unit %s not loaded.", unit)
}

// jobRef has the type of the property Job.
type jobRef struct {
	ID   uint32
	Path dbus.ObjectPath
}

func jobPath(id uint32) dbus.ObjectPath {
	if id == 0 {
		return "/"
	}
	return dbus.ObjectPath(fmt.Sprintf("%s/job/%d", systemdPath, id))
}

// manager implements the methods of org.freedesktop.systemd1.Manager.
type manager struct{ fake *Fake }

func (m manager) Subscribe(sender dbus.Sender) *dbus.Error {
	m.fake.mu.Lock()
	defer m.fake.mu.Unlock()
	if m.fake.subscribers[sender] {
		return refuse("org.freedesktop.systemd1.AlreadySubscribed", "Client is already subscribed.")
	}
	m.fake.subscribers[sender] = true
	return nil
}

func (m manager) GetUnit(name string) (dbus.ObjectPath, *dbus.Error) {
	m.fake.mu.Lock()
	defer m.fake.mu.Unlock()
	u := m.fake.units[name]
	if u == nil {
		return "", notLoaded(name)
	}
	return u.path, nil
}

func (m manager) StartTransientUnit(name, mode string, properties []sd.Property, aux []sd.PropertyCollection) (dbus.ObjectPath, *dbus.Error) {
	f := m.fake
	f.mu.Lock()
	defer f.mu.Unlock()
	u := newUnit(name, properties)
	if f.units[name] != nil {
		u.close()
		return "", refuse("org.freedesktop.systemd1.UnitExists", "Unit %s was already loaded or has a fragment file.", name)
	}
	f.units[name] = u
	f.emit(systemdPath, managerIface+".UnitNew", u.name, u.path)
	u.state.ActiveState, u.state.SubState = "activating", "start"
	return f.startJob(u, func(result string) {
		if result == "done" {
			f.lastPID++
			u.run(f.lastPID, f.lastPID)
		} else {
			u.state.ActiveState, u.state.SubState, u.state.Result = "failed", "failed", "resources"
		}
	}), nil
}

func (m manager) StopUnit(name, mode string) (dbus.ObjectPath, *dbus.Error) {
	f := m.fake
	f.mu.Lock()
	defer f.mu.Unlock()
	u := f.units[name]
	if u == nil {
		return "", notLoaded(name)
	}
	return f.startJob(u, func(result string) {
		if result == "done" && u.state.ActiveState != "failed" {
			u.state.ActiveState, u.state.SubState, u.state.MainPID = "inactive", "dead", 0
		}
	}), nil
}

// startJob creates a job that ends by itself, at once or when HoldJobs releases it. When
// it ends, effect changes the unit. The caller holds mu.
func (f *Fake) startJob(u *unit, effect func(result string)) dbus.ObjectPath {
	f.lastJob++
	id, hold, onStart := f.lastJob, f.hold, f.onStart
	starting := u.state.ActiveState == "activating"
	u.state.JobID = id
	f.changed(u)
	properties := maps.Clone(u.properties)
	f.jobs.Go(func() {
		select {
		case <-hold:
		case <-f.ended:
		}
		if starting && onStart != nil {
			onStart(u.name, properties)
		}
		f.mu.Lock()
		defer f.mu.Unlock()
		result := "done"
		if scripted, ok := f.results[u.name]; ok {
			result = scripted
			delete(f.results, u.name)
		}
		effect(result)
		u.state.JobID = 0
		f.emit(systemdPath, managerIface+".JobRemoved", id, jobPath(id), u.name, result)
		f.changed(u)
	})
	return jobPath(id)
}

func (m manager) ResetFailedUnit(name string) *dbus.Error {
	f := m.fake
	f.mu.Lock()
	defer f.mu.Unlock()
	u := f.units[name]
	if u == nil {
		return notLoaded(name)
	}
	if u.state.ActiveState == "failed" {
		u.state.ActiveState, u.state.SubState, u.state.Result = "inactive", "dead", "success"
		f.changed(u)
	}
	return nil
}

// KillUnit ends the main process on SIGTERM and SIGKILL, as if it had no signal handlers.
// It only records other signals.
func (m manager) KillUnit(name, whom string, signal int32) *dbus.Error {
	f := m.fake
	f.mu.Lock()
	defer f.mu.Unlock()
	u := f.units[name]
	if u == nil {
		return notLoaded(name)
	}
	if u.state.MainPID == 0 {
		return refuse("org.freedesktop.systemd1.NoSuchProcess", "No main process to kill")
	}
	u.signals = append(u.signals, syscall.Signal(signal))
	if s := syscall.Signal(signal); s == syscall.SIGTERM || s == syscall.SIGKILL {
		exit(&u.state, cldKilled, int(signal))
		f.changed(u)
	}
	return nil
}

func (m manager) SetUnitProperties(name string, runtime bool, properties []sd.Property) *dbus.Error {
	f := m.fake
	f.mu.Lock()
	defer f.mu.Unlock()
	u := f.units[name]
	if u == nil {
		return notLoaded(name)
	}
	for _, p := range properties {
		u.properties[p.Name] = p.Value
	}
	f.changed(u)
	return nil
}

func (m manager) ListUnitsByPatterns(states, patterns []string) ([]sd.UnitStatus, *dbus.Error) {
	f := m.fake
	f.mu.Lock()
	defer f.mu.Unlock()
	var listed []sd.UnitStatus
	for _, name := range slices.Backward(slices.Sorted(maps.Keys(f.units))) {
		u := f.units[name]
		if slices.ContainsFunc(patterns, func(p string) bool { ok, _ := path.Match(p, name); return ok }) {
			listed = append(listed, sd.UnitStatus{
				Name: name, LoadState: u.state.LoadState, ActiveState: u.state.ActiveState, SubState: u.state.SubState,
				Path: u.path, JobPath: jobPath(u.state.JobID), JobId: u.state.JobID,
			})
		}
	}
	return listed, nil
}

// managerProperties implements the properties of org.freedesktop.systemd1.Manager.
type managerProperties struct{ *Fake }

func (m managerProperties) Get(iface, name string) (dbus.Variant, *dbus.Error) {
	switch name {
	case "Version":
		m.mu.Lock()
		defer m.mu.Unlock()
		return dbus.MakeVariant(m.version), nil
	case "Features":
		return dbus.MakeVariant(Features), nil
	}
	return dbus.Variant{}, refuse("org.freedesktop.DBus.Error.UnknownProperty", "Unknown property %s.", name)
}
