package driver

import (
	"os"
	"reflect"
	"testing"

	"github.com/hashicorp/nomad/helper/testlog"
	"github.com/hashicorp/nomad/helper/uuid"
	"github.com/hashicorp/nomad/plugins/base"
	"github.com/hashicorp/nomad/plugins/drivers"
	"github.com/shoenig/test/must"

	"nomad-driver-nspawn/driver/upkeep"
	"nomad-driver-nspawn/nspawn"
	"nomad-driver-nspawn/nspawn/dirs"
	"nomad-driver-nspawn/nspawn/machine"
	"nomad-driver-nspawn/nspawn/systemd"
	"nomad-driver-nspawn/nspawn/systemd/systemdtest"
)

// firstState returns the state that the first version of the plugin wrote. The file is
// never rewritten.
func firstState(t *testing.T) []byte {
	text, err := os.ReadFile("testdata/state-1.msgpack")
	must.NoError(t, err)
	return text
}

// TestDecodeFirstState checks that fields of an older plugin keep their meaning, and that
// new fields are zero.
func TestDecodeFirstState(t *testing.T) {
	handle := drivers.NewTaskHandle(1)
	handle.DriverState = firstState(t)
	var state TaskState
	must.NoError(t, handle.GetDriverState(&state))
	must.Eq(t, TaskState{
		BootID: "6d9b7e0c-6c0e-4c0e-9f43-0a1f0e8d2a11", Mode: machine.ProcessTwo, Notifies: true, StopSignal: "SIGQUIT",
		Environment: map[string]string{"COLOR": "blue", "NOMAD_TASK_NAME": "web"}, User: "1000:1000", WorkingDirectory: "/srv",
	}, state)
}

// TestRecoverAnyVersion checks that a running task is recovered whatever version wrote its
// state, even one with more fields than ours.
func TestRecoverAnyVersion(t *testing.T) {
	var fields map[string]any
	must.NoError(t, base.MsgPackDecode(firstState(t), &fields))
	fields["FieldOfTheFuture"] = map[string]any{"A": 1}
	var newer []byte
	must.NoError(t, base.MsgPackEncode(&newer, fields))
	for version, state := range map[int][]byte{0: firstState(t), 1: firstState(t), 7: newer} {
		fake := systemdtest.New(t)
		machines, log := nspawn.NewManager(fake.Conn(), dirs.Dirs{Run: t.TempDir(), State: t.TempDir()}, nil), testlog.HCLogger(t)
		d := &Driver{ctx: t.Context(), logger: log, machines: machines, share: upkeep.NewShare(t.Context(), machines.LimitShare, log)}
		alloc := uuid.Generate()
		must.NoError(t, fake.Conn().StartTransientUnit(t.Context(), machine.UnitName(machine.Name(alloc, "web")), []systemd.Property{}))
		handle := drivers.NewTaskHandle(version)
		handle.Config = &drivers.TaskConfig{ID: alloc + "/web/1", AllocID: alloc, Name: "web"}
		handle.DriverState = state
		must.NoError(t, d.RecoverTask(handle), must.Sprint(version))
		h, ok := d.tasks.get(handle.Config.ID)
		must.True(t, ok)
		must.Eq(t, "1000:1000", h.state.User)
		status, err := d.InspectTask(handle.Config.ID)
		must.NoError(t, err)
		must.Eq(t, drivers.TaskStateRunning, status.State)
	}
}

// TestFirstStateIsWhole checks that the fixture has every field of the first version, none
// of them zero.
func TestFirstStateIsWhole(t *testing.T) {
	var fields map[string]any
	must.NoError(t, base.MsgPackDecode(firstState(t), &fields))
	must.MapLen(t, 7, fields)
	state := reflect.TypeFor[TaskState]()
	for name := range fields {
		_, ok := state.FieldByName(name)
		must.True(t, ok, must.Sprintf("%s is gone", name))
	}
}
