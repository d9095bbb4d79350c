package driver

import (
	"os"
	"os/exec"
	"testing"
	"time"

	goplugin "github.com/hashicorp/go-plugin"
	"github.com/hashicorp/nomad/helper/testlog"
	"github.com/hashicorp/nomad/plugins/base"
	"github.com/hashicorp/nomad/plugins/drivers"
	"github.com/hashicorp/nomad/plugins/drivers/testutils"
	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"

	"nomad-driver-nspawn/e2e/host/hosttest"
	"nomad-driver-nspawn/nspawn/machine"
)

// startBinary starts the built plugin in a process of its own, as Nomad runs it.
func startBinary(t *testing.T, options ...grpc.DialOption) (drivers.DriverPlugin, *goplugin.Client) {
	hosttest.Require(t)
	logger := testlog.HCLogger(t)
	client := goplugin.NewClient(&goplugin.ClientConfig{
		HandshakeConfig:  base.Handshake,
		Plugins:          goplugin.PluginSet{base.PluginTypeDriver: drivers.NewDriverPlugin(nil, logger)},
		Cmd:              exec.Command(os.Getenv(hosttest.PluginVariable)),
		AllowedProtocols: []goplugin.Protocol{goplugin.ProtocolGRPC},
		GRPCDialOptions:  options,
		Logger:           logger,
	})
	t.Cleanup(client.Kill)
	protocol, err := client.Client()
	must.NoError(t, err)
	raw, err := protocol.Dispense(base.PluginTypeDriver)
	must.NoError(t, err)
	return raw.(drivers.DriverPlugin), client
}

func newBinaryHarness(t *testing.T, pluginConfig string) (*testutils.DriverHarness, *goplugin.Client) {
	plugin, client := startBinary(t)
	harness := testutils.NewDriverHarness(t, plugin)
	configure(t, harness, pluginConfig)
	return harness, client
}

func TestHostBinary(t *testing.T) {
	for name, config := range modes {
		t.Run(name, func(t *testing.T) {
			harness, _ := newBinaryHarness(t, "")
			start := func() *drivers.TaskConfig {
				task := newTask(t, harness, config)
				startTask(t, harness, task)
				if name == "boot" {
					awaitEvent(t, harness, "Machine is ready")
				} else {
					awaitLog(t, task, "stdout", "up\n")
				}
				return task
			}
			task := start()
			result, err := harness.ExecTask(task.ID, []string{"/bin/sh", "-c", "exit 3"}, time.Minute)
			must.NoError(t, err)
			must.Eq(t, 3, result.ExitResult.ExitCode)
			must.NoError(t, harness.StopTask(task.ID, time.Minute, ""))
			must.Eq(t, map[string]int{"boot": 0, "process_one": 5, "process_two": 5}[name], waitTask(t, harness, task).ExitCode)
			must.NoError(t, harness.DestroyTask(task.ID, false))
			must.ErrorContains(t, harness.SignalTask(task.ID, "SIGTERM"), drivers.ErrTaskNotFound.Error())
			// This closes the harness.
			testutils.ExecTaskStreamingConformanceTests(t, harness, start().ID)
		})
	}
}

// TestHostBinaryKilled checks that a killed plugin takes nothing with it: the next plugin
// has the tasks, their output continues, and it reports the exit code of a task that ended
// in between.
func TestHostBinaryKilled(t *testing.T) {
	second, _ := newBinaryHarness(t, "")
	first, process := newBinaryHarness(t, "")
	const word = "read word <>/local/go; echo $word; exit 7"
	running, ending := newTask(t, second, script("mkfifo /local/go; echo up; "+word)), newTask(t, second, script("mkfifo /local/go; echo up; "+word))
	handles := map[*drivers.TaskConfig]*drivers.TaskHandle{}
	for _, task := range []*drivers.TaskConfig{running, ending} {
		handles[task] = startTask(t, first, task)
		awaitLog(t, task, "stdout", "up\n")
	}
	must.NoError(t, unix.Kill(process.ReattachConfig().Pid, unix.SIGKILL))
	tell := func(task *drivers.TaskConfig) {
		must.NoError(t, os.WriteFile(task.TaskDir().LocalDir+"/go", []byte("word\n"), 0))
	}
	tell(ending)
	awaitLog(t, ending, "stdout", "up\nword\n")

	for task, handle := range handles {
		must.NoError(t, second.RecoverTask(handle))
		if task == running {
			tell(task)
		}
		must.Eq(t, 7, waitTask(t, second, task).ExitCode)
		awaitLog(t, task, "stdout", "up\nword\n")
		must.NoError(t, second.DestroyTask(task.ID, false))
	}
}

// TestHostBinaryWithoutLogCollection checks that Nomad starts no log collector if the
// plugin says so, and that a task then writes to the journal.
func TestHostBinaryWithoutLogCollection(t *testing.T) {
	for config, want := range map[string]bool{"": false, "disable_log_collection = true": true} {
		harness, _ := newBinaryHarness(t, config)
		capabilities, err := harness.Impl().Capabilities() // the harness's own server leaves it out
		must.NoError(t, err)
		must.Eq(t, want, capabilities.DisableLogCollection)
		must.True(t, capabilities.Exec)
		if !want {
			continue
		}
		task := newTask(t, harness, script("echo hello"))
		task.StdoutPath, task.StderrPath = "", "" // as without a log collector
		startTask(t, harness, task)
		must.Zero(t, waitTask(t, harness, task).ExitCode)
		must.NoError(t, harness.DestroyTask(task.ID, false))
		must.NoError(t, exec.Command("journalctl", "--sync").Run())
		lines, err := exec.Command("journalctl", "--output=cat", "--identifier="+machine.Name(task.AllocID, task.Name)).Output()
		must.NoError(t, err)
		must.Eq(t, "hello\n", string(lines))
	}
}
