package driver

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/nomad/helper/testlog"
	"github.com/hashicorp/nomad/helper/uuid"
	"github.com/hashicorp/nomad/nomad/structs"
	"github.com/hashicorp/nomad/plugins/base"
	"github.com/hashicorp/nomad/plugins/drivers"
	"github.com/hashicorp/nomad/plugins/drivers/testutils"
	"github.com/shoenig/test/must"

	"nomad-driver-nspawn/e2e/host/hosttest"
	"nomad-driver-nspawn/nspawn/enter/container"
	"nomad-driver-nspawn/nspawn/launch"
	"nomad-driver-nspawn/nspawn/machine"
)

func TestMain(m *testing.M) {
	if launch.Called(os.Args) {
		launch.Main()
	}
	if container.Called(os.Args) {
		container.Main()
	}
	os.Exit(m.Run())
}

// newHarness returns the driver behind Nomad's gRPC, as the client sees it.
func newHarness(t *testing.T, pluginConfig string) *testutils.DriverHarness {
	hosttest.Require(t)
	ctx, cancel := context.WithCancel(context.Background())
	d := New(ctx, testlog.HCLogger(t))
	harness := testutils.NewDriverHarness(t, flushing{d})
	// harness.Kill cannot be used: go-plugin's server for tests has a data race if it is
	// stopped while its client closes (1.7.0, grpc_server.go, Stop).
	t.Cleanup(func() {
		cancel()
		d.bus.Close()
	})
	configure(t, harness, pluginConfig)
	return harness
}

func configure(t *testing.T, harness *testutils.DriverHarness, pluginConfig string) {
	must.NoError(t, harness.SetConfig(&base.Config{PluginConfig: encodedConfig(t, pluginConfig)}))
}

// encodedConfig returns the plugin's options as Nomad sends them, with what most tests need.
func encodedConfig(t *testing.T, pluginConfig string) (data []byte) {
	if !strings.Contains(pluginConfig, "image_paths") {
		pluginConfig += fmt.Sprintf("\nimage_paths = [%q, %q, %q, %q, %q, %q]",
			images, hosttest.Busybox, hosttest.Debian, hosttest.Inits, hosttest.MkosiTree, hosttest.MkosiDisk)
	}
	if !strings.Contains(pluginConfig, "allow_host_network") { // most tasks here need no network of their own
		pluginConfig += "\nallow_host_network = true"
	}
	config := parseConfig(t, pluginConfig)
	must.NoError(t, base.MsgPackEncode(&data, &config))
	return data
}

// flushing returns from an exec when Nomad's side has forwarded all output. Unlike Nomad's
// server, the harness looks at once at what has arrived. An empty write ends when the
// reader of the pipe asks for more.
type flushing struct{ *Driver }

// newImage returns an image of empty directories.
func newImage(t *testing.T, names ...string) string {
	hosttest.Require(t)
	dir, err := os.MkdirTemp(images, "bare")
	must.NoError(t, err)
	t.Cleanup(func() { must.NoError(t, os.RemoveAll(dir)) })
	for _, name := range names {
		must.NoError(t, os.MkdirAll(filepath.Join(dir, name), 0o755))
	}
	return dir
}

// newTask returns a task with the directories and streams that Nomad's client makes.
func newTask(t *testing.T, harness *testutils.DriverHarness, config string) *drivers.TaskConfig {
	alloc := uuid.Generate()
	name := fmt.Sprintf("task%d", taskNumber.Add(1))
	task := &drivers.TaskConfig{
		ID: alloc + "/" + name + "/" + uuid.Short(), AllocID: alloc, Name: name,
		JobName: "job", JobID: "job", TaskGroupName: "group", Namespace: "default",
		Env: map[string]string{"GREETING": "hello"},
		Resources: &drivers.Resources{
			NomadResources: &structs.AllocatedTaskResources{
				Memory: structs.AllocatedMemoryResources{MemoryMB: 256},
				Cpu:    structs.AllocatedCpuResources{CpuShares: 100},
			},
			LinuxResources: &drivers.LinuxResources{CPUShares: 100, MemoryLimitBytes: 256 << 20},
		},
	}
	parsed := parseTask(t, config)
	must.NoError(t, task.EncodeConcreteDriverConfig(&parsed))
	cleanup := harness.MkAllocDir(task, true)
	t.Cleanup(cleanup)
	t.Cleanup(func() {
		must.NoError(t, harness.Impl().DestroyTask(task.ID, true)) // the test may have closed the client already
		mounts, err := os.ReadFile("/proc/self/mountinfo")
		must.NoError(t, err)
		must.StrNotContains(t, string(mounts), machine.Name(alloc, name))
	})
	return task
}

func startTask(t *testing.T, harness *testutils.DriverHarness, task *drivers.TaskConfig) *drivers.TaskHandle {
	handle, _, err := harness.StartTask(task)
	must.NoError(t, err)
	return handle
}

func waitTask(t *testing.T, harness *testutils.DriverHarness, task *drivers.TaskConfig) *drivers.ExitResult {
	results, err := harness.WaitTask(t.Context(), task.ID)
	must.NoError(t, err)
	select {
	case result := <-results:
		must.NotNil(t, result)
		return result
	case <-time.After(time.Minute):
		t.Fatal("the task does not end")
		return nil
	}
}

func script(text string) string { return command + fmt.Sprintf("args = [\"-c\", %q]\n", text) }

// awaitLog waits for Nomad's log collector, which copies what the task writes piece by
// piece.
func awaitLog(t *testing.T, task *drivers.TaskConfig, stream, want string) {
	t.Helper()
	path := filepath.Join(task.TaskDir().LogDir, task.Name+"."+stream+".0")
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		text, err := os.ReadFile(path)
		if err == nil && string(text) == want {
			return
		}
		if time.Now().After(deadline) {
			must.NoError(t, err)
			must.Eq(t, want, string(text))
		}
	}
}

// awaitEvent waits for an event. Call it before the event can happen.
func awaitEvent(t *testing.T, harness *testutils.DriverHarness, message string) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	events, err := harness.TaskEvents(ctx)
	must.NoError(t, err)
	for event := range events {
		must.NoError(t, event.Err)
		if event.Message == message {
			return
		}
	}
	t.Fatalf("no event %q", message)
}
