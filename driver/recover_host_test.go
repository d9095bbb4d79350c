package driver

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"nomad-driver-nspawn/nspawn/dirs"
	"nomad-driver-nspawn/nspawn/machine"
)

// TestHostRecoverOnBrokenHost checks that a running task does not end because the bus is
// away, or because no socket can be made in the run directory.
func TestHostRecoverOnBrokenHost(t *testing.T) {
	first := newHarness(t, "")
	task := newTask(t, first, script("trap 'exit 5' TERM; echo up; while :; do sleep 1000 & wait $!; done"))
	handle := startTask(t, first, task)
	awaitLog(t, task, "stdout", "up\n")
	notify := filepath.Join(dirs.Default.Run, "machines", machine.Name(task.AllocID, task.Name), "notify")
	must.NoError(t, os.Remove(notify))
	must.NoError(t, os.MkdirAll(notify+"/in the way", 0o700))

	t.Setenv("DBUS_SYSTEM_BUS_ADDRESS", "unix:path=/nonexistent")
	second := newHarness(t, "")
	must.NoError(t, second.RecoverTask(handle))
	must.NoError(t, os.Unsetenv("DBUS_SYSTEM_BUS_ADDRESS"))

	must.NoError(t, second.StopTask(task.ID, time.Minute, ""))
	must.Eq(t, 5, waitTask(t, second, task).ExitCode)
	must.Eq(t, 5, waitTask(t, first, task).ExitCode)
	before, err := first.InspectTask(task.ID)
	must.NoError(t, err)
	now, err := second.InspectTask(task.ID)
	must.NoError(t, err)
	must.True(t, before.StartedAt.Equal(now.StartedAt), must.Sprint(before.StartedAt, now.StartedAt))
	must.True(t, now.CompletedAt.After(now.StartedAt))
}
