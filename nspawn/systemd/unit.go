package systemd

import (
	"context"
	"encoding/hex"
	"errors"
	"slices"
	"time"

	sd "github.com/coreos/go-systemd/v22/dbus"
	"github.com/godbus/dbus/v5"
)

// Property is a property of a unit in systemd's D-Bus interface.
type Property = sd.Property

// NewProperty returns a property. The type of value must correspond to the property's
// D-Bus type.
func NewProperty(name string, value any) Property {
	return Property{Name: name, Value: dbus.MakeVariant(value)}
}

// auxUnit is an auxiliary unit of StartTransientUnit; systemd does not support any yet.
type auxUnit struct {
	Name       string
	Properties []Property
}

// UnitState is the state of a unit at one moment. The fields have the names and meanings
// of the properties in org.freedesktop.systemd1(5). Fields that only services have are
// zero for other units. States can be compared with ==.
type UnitState struct {
	LoadState, ActiveState, SubState string
	Result                           string
	InvocationID                     string // in hexadecimal; empty before the first start
	JobID                            uint32 // ID of the queued or running job; 0 if there is none

	MainPID                      uint32 // 0 if there is no main process at present
	ExecMainPID                  uint32 // kept after the process has ended
	ExecMainCode, ExecMainStatus int32  // CLD_EXITED, CLD_KILLED, … of waitid(2), and exit status or signal
	ExecMainStart, ExecMainExit  time.Time
	NRestarts                    uint32

	ControlGroup, Description, Slice string
}

// notLoaded returns the state of a unit that is not loaded.
func notLoaded() UnitState {
	return UnitState{LoadState: "not-found", ActiveState: "inactive", SubState: "dead"}
}

// Unit returns the current state of a unit. The error is [ErrNotFound] if it is not
// loaded.
func (c *Conn) Unit(ctx context.Context, name string) (UnitState, error) {
	// Call GetUnit first, because it does not load the unit. Requesting the properties of
	// an object path would load it, and send the signals UnitNew and UnitRemoved. These
	// would wake the watchers, which would request the properties again, and so on.
	var path dbus.ObjectPath
	if err := c.call(ctx, manager("get unit", name, "GetUnit", name), &path); err != nil {
		return UnitState{}, err
	}
	var p properties
	r := getAll("get unit", name, systemdName, path, "")
	if err := c.call(ctx, r, &p); err != nil {
		return UnitState{}, err
	}
	state := p.unitState()
	// A unit that is still active exists even if its file does not.
	if state.LoadState == "not-found" && state.ActiveState == "inactive" {
		return UnitState{}, r.wrap(ErrNotFound)
	}
	return state, nil
}

// properties are the properties of one object.
type properties map[string]dbus.Variant

// get returns a property, or the zero value if it is missing or has another type.
func get[T any](p properties, name string) T {
	value, _ := p[name].Value().(T)
	return value
}

// timestamp returns a property that counts microseconds since 1970.
func (p properties) timestamp(name string) time.Time {
	usec := get[uint64](p, name)
	if usec == 0 {
		return time.Time{}
	}
	return time.UnixMicro(int64(usec))
}

// jobID returns the ID in the property Job, whose type is (uo).
func (p properties) jobID() uint32 {
	fields := get[[]any](p, "Job")
	if len(fields) == 0 {
		return 0
	}
	id, _ := fields[0].(uint32)
	return id
}

func (p properties) unitState() UnitState {
	return UnitState{
		LoadState:      get[string](p, "LoadState"),
		ActiveState:    get[string](p, "ActiveState"),
		SubState:       get[string](p, "SubState"),
		Result:         get[string](p, "Result"),
		InvocationID:   hex.EncodeToString(get[[]byte](p, "InvocationID")),
		JobID:          p.jobID(),
		MainPID:        get[uint32](p, "MainPID"),
		ExecMainPID:    get[uint32](p, "ExecMainPID"),
		ExecMainCode:   get[int32](p, "ExecMainCode"),
		ExecMainStatus: get[int32](p, "ExecMainStatus"),
		ExecMainStart:  p.timestamp("ExecMainStartTimestamp"),
		ExecMainExit:   p.timestamp("ExecMainExitTimestamp"),
		NRestarts:      get[uint32](p, "NRestarts"),
		ControlGroup:   get[string](p, "ControlGroup"),
		Description:    get[string](p, "Description"),
		Slice:          get[string](p, "Slice"),
	}
}

// UnitsByPattern returns the sorted names of the loaded units that match a glob pattern.
// They include finished and failed units.
func (c *Conn) UnitsByPattern(ctx context.Context, pattern string) ([]string, error) {
	var listed []sd.UnitStatus
	r := manager("list units", pattern, "ListUnitsByPatterns", []string{}, []string{pattern})
	if err := c.call(ctx, r, &listed); err != nil {
		return nil, err
	}
	var names []string
	for _, u := range listed {
		// The list also contains units to which other units merely refer.
		if u.LoadState != "not-found" || u.ActiveState != "inactive" {
			names = append(names, u.Name)
		}
	}
	slices.Sort(names)
	return names, nil
}

// KillUnit sends a signal to processes of a unit; whom is "main", "control" or "all". The
// error is [ErrNoProcess] if there is no such process, and [ErrNotFound] if the unit is
// not loaded.
func (c *Conn) KillUnit(ctx context.Context, name, whom string, signal int) error {
	r := manager("kill unit", name, "KillUnit", name, whom, int32(signal))
	r.once = true
	return c.call(ctx, r)
}

// ResetFailedUnit makes a failed unit inactive, and systemd then unloads it. It is not an
// error if the unit is not loaded.
func (c *Conn) ResetFailedUnit(ctx context.Context, name string) error {
	err := c.call(ctx, manager("reset failed unit", name, "ResetFailedUnit", name))
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	return err
}

// SetUnitProperties changes properties of a running unit, or of a slice, which always
// exists. If runtime is set, the change lasts until the next reboot.
func (c *Conn) SetUnitProperties(ctx context.Context, name string, runtime bool, properties ...Property) error {
	return c.call(ctx, manager("set properties of unit", name, "SetUnitProperties", name, runtime, properties))
}
