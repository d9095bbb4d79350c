package driver

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/hashicorp/nomad/plugins/drivers"
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

// TestHostRecover checks that a new plugin takes over running tasks, and reports the exit
// codes of those that have ended.
func TestHostRecover(t *testing.T) {
	first := newHarness(t, "")
	running := newTask(t, first, modes["process_two"])
	ended := newTask(t, first, script("exit 9"))
	runningHandle, endedHandle := startTask(t, first, running), startTask(t, first, ended)
	must.Eq(t, 9, waitTask(t, first, ended).ExitCode)

	second := newHarness(t, "")
	must.NoError(t, second.RecoverTask(runningHandle))
	must.NoError(t, second.RecoverTask(runningHandle)) // a known task
	must.NoError(t, second.RecoverTask(endedHandle))
	must.Eq(t, 9, waitTask(t, second, ended).ExitCode)
	result, err := second.ExecTask(running.ID, []string{"/bin/sh", "-c", "echo $GREETING"}, time.Minute)
	must.NoError(t, err)
	must.Eq(t, "hello\n", string(result.Stdout))
	must.NoError(t, second.StopTask(running.ID, 20*time.Second, "SIGKILL"))
}

// TestHostRecoverDestroyed checks that the end of a task is reported again to an agent
// that was killed after DestroyTask, before it recorded the end. A machine that
// disappeared otherwise does not count as ended.
func TestHostRecoverDestroyed(t *testing.T) {
	first := newHarness(t, "")
	ended, killed, lost := newTask(t, first, script("exit 9")), newTask(t, first, script("kill -KILL $$")), newTask(t, first, modes["process_two"])
	handles := map[*drivers.TaskConfig]*drivers.TaskHandle{}
	for _, task := range []*drivers.TaskConfig{ended, killed, lost} {
		handles[task] = startTask(t, first, task)
	}
	before := map[*drivers.TaskConfig]*drivers.ExitResult{}
	for _, task := range []*drivers.TaskConfig{ended, killed} {
		before[task] = waitTask(t, first, task)
		must.NoError(t, first.DestroyTask(task.ID, false))
	}
	must.NoError(t, first.DestroyTask(lost.ID, true)) // while it runs

	second := newHarness(t, "")
	for task, result := range before {
		must.NoError(t, second.RecoverTask(handles[task]))
		must.Eq(t, result, waitTask(t, second, task))
		status, err := second.InspectTask(task.ID)
		must.NoError(t, err)
		must.True(t, status.CompletedAt.After(status.StartedAt))
	}
	must.ErrorContains(t, second.RecoverTask(handles[lost]), "unit is gone")

	var state TaskState
	must.NoError(t, handles[ended].GetDriverState(&state))
	state.BootID = "another"
	must.NoError(t, handles[ended].SetDriverState(&state))
	must.ErrorContains(t, newHarness(t, "").RecoverTask(handles[ended]), "the host was rebooted")
}

// TestHostStartAgain checks that a task runs once, and that its exit code is reported, if
// a plugin is killed during a start and Nomad repeats the start.
func TestHostStartAgain(t *testing.T) {
	first := newHarness(t, "")
	running, ended := newTask(t, first, script("echo x >>/alloc/data/runs; while :; do sleep 1000 & wait $!; done")), newTask(t, first, script("echo x >>/alloc/data/runs; exit 9"))
	for _, task := range []*drivers.TaskConfig{running, ended} {
		startTask(t, first, task)
	}
	must.Eq(t, 9, waitTask(t, first, ended).ExitCode)
	second := newHarness(t, "")
	for _, task := range []*drivers.TaskConfig{running, ended} {
		startTask(t, second, task)
	}
	must.Eq(t, 9, waitTask(t, second, ended).ExitCode)
	status, err := second.InspectTask(ended.ID)
	must.NoError(t, err)
	must.True(t, status.CompletedAt.After(status.StartedAt))
	must.NoError(t, second.StopTask(running.ID, 20*time.Second, "SIGKILL"))
	waitTask(t, second, running)
	for _, task := range []*drivers.TaskConfig{running, ended} {
		runs, err := os.ReadFile(filepath.Join(task.TaskDir().SharedAllocDir, "data", "runs"))
		must.NoError(t, err)
		must.Eq(t, "x\n", string(runs))
	}
}

// TestHostDestroyUnseenTask destroys a task that Nomad could not recover, so that the
// plugin has never seen it.
func TestHostDestroyUnseenTask(t *testing.T) {
	first := newHarness(t, "")
	task := newTask(t, first, modes["process_two"])
	startTask(t, first, task)
	must.NoError(t, newHarness(t, "").DestroyTask(task.ID, true))
	must.False(t, waitTask(t, first, task).Successful())
}
