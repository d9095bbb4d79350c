package systemdtest

import (
	"encoding/hex"
	"os"
	"syscall"
	"time"

	sd "github.com/coreos/go-systemd/v22/dbus"
	"github.com/godbus/dbus/v5"

	"nomad-driver-nspawn/nspawn/systemd"
)

// The values of si_code in waitid(2).
const (
	cldExited = 1
	cldKilled = 2
)

// unit is a loaded transient service. It is guarded by Fake.mu.
type unit struct {
	name       string
	path       dbus.ObjectPath
	properties map[string]dbus.Variant
	files      []*os.File
	state      systemd.UnitState
	signals    []syscall.Signal
	pinned     bool // another client holds a reference
}

func newUnit(name string, properties []sd.Property) *unit {
	u := &unit{
		name:       name,
		path:       unitPrefix + "/" + dbus.ObjectPath(sd.PathBusEscape(name)),
		properties: make(map[string]dbus.Variant),
		state:      systemd.UnitState{LoadState: "loaded", ActiveState: "inactive", SubState: "dead", Result: "success"},
	}
	for _, p := range properties {
		u.properties[p.Name] = p.Value
		if fd, ok := p.Value.Value().(dbus.UnixFD); ok {
			u.files = append(u.files, os.NewFile(uintptr(fd), p.Name))
		}
	}
	u.state.Description = u.text("Description", name)
	u.state.Slice = u.text("Slice", "system.slice")
	return u
}

func (u *unit) text(property, otherwise string) string {
	if value, ok := u.properties[property].Value().(string); ok {
		return value
	}
	return otherwise
}

func (u *unit) close() {
	for _, file := range u.files {
		file.Close()
	}
	u.files = nil
}

// run changes the unit as a successful start job does.
func (u *unit) run(pid, invocation uint32) {
	s := &u.state
	s.ActiveState, s.SubState = "active", "running"
	s.MainPID, s.ExecMainPID = pid, pid
	s.ExecMainStart = now()
	s.InvocationID = hex.EncodeToString(append(make([]byte, 12), byte(invocation>>24), byte(invocation>>16), byte(invocation>>8), byte(invocation)))
	s.ControlGroup = "/" + s.Slice + "/" + u.name
}

// settle adjusts the unit's state after its main process has ended.
func (u *unit) settle() {
	s := &u.state
	if s.SubState != "exited" || s.ActiveState != "active" {
		return
	}
	if remain, _ := u.properties["RemainAfterExit"].Value().(bool); !remain {
		s.ActiveState, s.SubState = "inactive", "dead"
	}
}

// exit changes a unit's state as the end of its main process does.
func exit(s *systemd.UnitState, code, status int) {
	s.MainPID = 0
	s.ExecMainCode, s.ExecMainStatus = int32(code), int32(status)
	s.ExecMainExit = now()
	s.ControlGroup = ""
	switch {
	case code == cldExited && status == 0:
		s.ActiveState, s.SubState = "active", "exited"
		return
	case code == cldExited:
		s.Result = "exit-code"
	default:
		s.Result = "signal"
	}
	s.ActiveState, s.SubState = "failed", "failed"
}

// now returns the time in the precision of systemd's timestamps.
func now() time.Time { return time.Now().Truncate(time.Microsecond) }

// changed sends the signals for a changed unit, and unloads it if nothing keeps it
// loaded. The caller holds mu.
func (f *Fake) changed(u *unit) {
	if f.units[u.name] != u {
		return // unloaded already
	}
	u.settle()
	// systemd sends one signal for each interface. A signal names only some of the
	// properties, some of them without values, so clients must ask.
	for _, iface := range []string{serviceIface, unitIface} {
		f.emit(u.path, propertyIface+".PropertiesChanged", iface, map[string]dbus.Variant{}, []string{"ActiveState"})
	}
	f.collect(u)
}

// collect unloads a unit if nothing keeps it loaded.
func (f *Fake) collect(u *unit) {
	if u.state.ActiveState != "inactive" || u.state.JobID != 0 || u.pinned {
		return
	}
	u.close()
	delete(f.units, u.name)
	f.emit(systemdPath, managerIface+".UnitRemoved", u.name, u.path)
}

// unitProperties implements the objects of all units.
type unitProperties struct{ fake *Fake }

func (p unitProperties) GetAll(msg dbus.Message, iface string) (map[string]dbus.Variant, *dbus.Error) {
	f := p.fake
	f.mu.Lock()
	defer f.mu.Unlock()
	path, _ := msg.Headers[dbus.FieldPath].Value().(dbus.ObjectPath)
	for _, u := range f.units {
		if u.path == path {
			return propertiesOf(u.state, iface), nil
		}
	}
	// To answer, systemd loads the unit for a moment.
	f.emit(systemdPath, managerIface+".UnitNew", "unknown.service", path)
	f.emit(systemdPath, managerIface+".UnitRemoved", "unknown.service", path)
	return propertiesOf(systemd.UnitState{LoadState: "not-found", ActiveState: "inactive", SubState: "dead"}, iface), nil
}

func (p unitProperties) Get(msg dbus.Message, iface, name string) (dbus.Variant, *dbus.Error) {
	all, err := p.GetAll(msg, iface)
	if err != nil {
		return dbus.Variant{}, err
	}
	value, ok := all[name]
	if !ok {
		return value, refuse("org.freedesktop.DBus.Error.UnknownProperty", "Unknown property %s.", name)
	}
	return value, nil
}

// propertiesOf returns the properties of one interface, or of all if iface is empty.
func propertiesOf(s systemd.UnitState, iface string) map[string]dbus.Variant {
	all := make(map[string]dbus.Variant)
	add := func(of string, properties map[string]any) {
		if iface == "" || iface == of {
			for name, value := range properties {
				all[name] = dbus.MakeVariant(value)
			}
		}
	}
	id, _ := hex.DecodeString(s.InvocationID)
	add(unitIface, map[string]any{
		"LoadState":    s.LoadState,
		"ActiveState":  s.ActiveState,
		"SubState":     s.SubState,
		"Description":  s.Description,
		"InvocationID": id,
		"Job":          jobRef{s.JobID, jobPath(s.JobID)},
	})
	add(serviceIface, map[string]any{
		"Result":                 s.Result,
		"MainPID":                s.MainPID,
		"ExecMainPID":            s.ExecMainPID,
		"ExecMainCode":           s.ExecMainCode,
		"ExecMainStatus":         s.ExecMainStatus,
		"ExecMainStartTimestamp": usec(s.ExecMainStart),
		"ExecMainExitTimestamp":  usec(s.ExecMainExit),
		"NRestarts":              s.NRestarts,
		"ControlGroup":           s.ControlGroup,
		"Slice":                  s.Slice,
	})
	return all
}

func usec(t time.Time) uint64 {
	if t.IsZero() {
		return 0
	}
	return uint64(t.UnixMicro())
}
