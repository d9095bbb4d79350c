package driver

import (
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/nomad/helper/testlog"
	"github.com/hashicorp/nomad/helper/uuid"
	"github.com/hashicorp/nomad/plugins/drivers"
	"github.com/shoenig/test/must"

	"nomad-driver-nspawn/driver/upkeep"
	"nomad-driver-nspawn/nspawn"
	"nomad-driver-nspawn/nspawn/dirs"
	"nomad-driver-nspawn/nspawn/machine"
	"nomad-driver-nspawn/nspawn/systemd"
	"nomad-driver-nspawn/nspawn/systemd/systemdtest"
)

// runningTask returns a driver that has recovered a task, with a unit of a fake systemd.
func runningTask(t *testing.T, fake *systemdtest.Fake) (d *Driver, id, unit string) {
	machines := nspawn.NewManager(fake.Conn(), dirs.Dirs{Run: t.TempDir(), State: t.TempDir()}, nil)
	d = New(t.Context(), testlog.HCLogger(t))
	d.machines = machines
	d.reaper = upkeep.NewReaper(machines, d.tasks.known, d.logger)
	alloc := uuid.Generate()
	unit = machine.UnitName(machine.Name(alloc, "web"))
	must.NoError(t, fake.Conn().StartTransientUnit(t.Context(), unit, []systemd.Property{}))
	handle := drivers.NewTaskHandle(stateVersion)
	handle.Config = &drivers.TaskConfig{ID: alloc + "/web/1", AllocID: alloc, Name: "web"}
	must.NoError(t, handle.SetDriverState(&TaskState{Mode: machine.ProcessTwo}))
	must.NoError(t, d.RecoverTask(handle))
	return d, handle.Config.ID, unit
}

// TestUnknownSignals checks that an unknown signal is refused by name, and that no other
// one is sent instead. When StopTask fails, Nomad asks again, and then the task must end.
func TestUnknownSignals(t *testing.T) {
	fake := systemdtest.New(t)
	d, id, unit := runningTask(t, fake)
	events, err := d.TaskEvents(t.Context())
	must.NoError(t, err)
	for _, name := range []string{"SIGNONE", "", "0", "65", "SIGRTMIN+40"} {
		must.ErrorContains(t, d.SignalTask(id, name), "unknown signal", must.Sprint(name))
	}
	must.ErrorContains(t, d.StopTask(id, time.Minute, "SIGNONE"), `kill_signal: unknown signal "SIGNONE"`)
	must.StrContains(t, (<-events).Message, "SIGNONE")
	must.SliceEmpty(t, fake.Signals(unit))
	must.ErrorContains(t, d.DestroyTask(id, false), "running")

	must.NoError(t, d.StopTask(id, time.Minute, "SIGNONE"))
	must.Eq(t, []syscall.Signal{syscall.SIGKILL}, fake.Signals(unit))
}

// TestStopAwaitsTheEnd checks that StopTask returns when the task counts as exited, so
// that it can be destroyed.
func TestStopAwaitsTheEnd(t *testing.T) {
	for range 20 {
		d, id, _ := runningTask(t, systemdtest.New(t))
		must.NoError(t, d.StopTask(id, 0, ""))
		status, err := d.InspectTask(id)
		must.NoError(t, err)
		must.Eq(t, drivers.TaskStateExited, status.State)
	}
}
