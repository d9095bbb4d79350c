package driver

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/nomad/helper/testlog"
	"github.com/hashicorp/nomad/helper/uuid"
	"github.com/hashicorp/nomad/nomad/structs"
	"github.com/hashicorp/nomad/plugins/base"
	"github.com/hashicorp/nomad/plugins/drivers"
	"github.com/hashicorp/nomad/plugins/drivers/testutils"
	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"

	"nomad-driver-nspawn/driver/operator"
	"nomad-driver-nspawn/e2e/host/hosttest"
	"nomad-driver-nspawn/nspawn/dirs"
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
	if !strings.Contains(pluginConfig, "image_paths") {
		pluginConfig += fmt.Sprintf("\nimage_paths = [%q, %q, %q, %q, %q, %q]",
			images, hosttest.Busybox, hosttest.Debian, hosttest.Inits, hosttest.MkosiTree, hosttest.MkosiDisk)
	}
	if !strings.Contains(pluginConfig, "allow_host_network") { // most tasks here need no network of their own
		pluginConfig += "\nallow_host_network = true"
	}
	config := parseConfig(t, pluginConfig)
	var data []byte
	must.NoError(t, base.MsgPackEncode(&data, &config))
	must.NoError(t, harness.SetConfig(&base.Config{PluginConfig: data}))
}

// flushing returns from an exec when Nomad's side has forwarded all output. Unlike Nomad's
// server, the harness looks at once at what has arrived. An empty write ends when the
// reader of the pipe asks for more.
type flushing struct{ *Driver }

func (f flushing) ExecTaskStreaming(ctx context.Context, id string, opts *drivers.ExecOptions) (*drivers.ExitResult, error) {
	result, err := f.Driver.ExecTaskStreaming(ctx, id, opts)
	for _, stream := range []io.Writer{opts.Stdout, opts.Stderr} {
		if _, err := stream.Write(nil); err != nil {
			return nil, err
		}
	}
	return result, err
}

// images is the directory in which machined keeps images.
const images = "/var/lib/machines"

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

var taskNumber atomic.Int32

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

const command = `
  image        = "` + hosttest.Busybox + `"
  network_veth = false
  command      = "/bin/sh"
`

func script(text string) string { return command + fmt.Sprintf("args = [\"-c\", %q]\n", text) }

// untilStopped prints "up" when SIGTERM will end it with 5.
const untilStopped = "trap 'exit 5' TERM; echo up; while :; do sleep 1000 & wait $!; done"

// modes are the ways to run a task that runs until it is stopped.
var modes = map[string]string{
	"process_one": script(untilStopped) + "process_two = false\n",
	"process_two": script(untilStopped),
	"boot":        `image = "` + hosttest.Debian + `"`,
}

func TestHostExitCode(t *testing.T) {
	harness := newHarness(t, "")
	task := newTask(t, harness, script("echo $GREETING; echo oops >&2; exit 7"))
	startTask(t, harness, task)
	must.Eq(t, 7, waitTask(t, harness, task).ExitCode)
	status, err := harness.InspectTask(task.ID)
	must.NoError(t, err)
	must.Eq(t, drivers.TaskStateExited, status.State)
	must.NoError(t, harness.DestroyTask(task.ID, false))
	awaitLog(t, task, "stdout", "hello\n")
	awaitLog(t, task, "stderr", "oops\n")
}

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

// TestHostExecConformance runs Nomad's own suite for `nomad alloc exec` in each mode.
func TestHostExecConformance(t *testing.T) {
	for name, config := range modes {
		t.Run(name, func(t *testing.T) {
			harness := newHarness(t, "")
			task := newTask(t, harness, config)
			startTask(t, harness, task)
			if name == "boot" {
				awaitEvent(t, harness, "Machine is ready")
			}
			testutils.ExecTaskStreamingConformanceTests(t, harness, task.ID)
		})
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

// TestHostUnmappableImage checks that an image that cannot be ID-mapped, such as one on
// overlayfs, runs, and that an event says that it is slower.
func TestHostUnmappableImage(t *testing.T) {
	harness := newHarness(t, "")
	image := newImage(t)
	must.NoError(t, unix.Mount("overlay", image, "overlay", unix.MS_RDONLY, "lowerdir="+hosttest.Busybox+":"+image))
	t.Cleanup(func() { must.NoError(t, unix.Unmount(image, 0)) })
	task := newTask(t, harness, fmt.Sprintf(`
		image        = %q
		network_veth = false
		command      = "/bin/sh"
		args         = ["-c", "stat -c %%u:%%g / /etc/passwd; echo x >/etc/passwd"]
	`, image))
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	events, err := harness.TaskEvents(ctx)
	must.NoError(t, err)
	startTask(t, harness, task)
	must.StrContains(t, (<-events).Message, "private copy of the image, which takes time for images of many files")
	must.Zero(t, waitTask(t, harness, task).ExitCode)
	awaitLog(t, task, "stdout", "0:0\n0:0\n")
}

func TestHostExecTask(t *testing.T) {
	harness := newHarness(t, "")
	task := newTask(t, harness, modes["process_two"])
	startTask(t, harness, task)
	result, err := harness.ExecTask(task.ID, []string{"/bin/sh", "-c", "echo $GREETING; echo oops >&2; exit 3"}, time.Minute)
	must.NoError(t, err)
	must.Eq(t, 3, result.ExitResult.ExitCode)
	must.Eq(t, "hello\noops\n", string(result.Stdout))

	// This is what Nomad's suite checks on hosts with unified cgroups. It does not
	// recognize a disposable host as one.
	result, err = harness.ExecTask(task.ID, []string{"/bin/grep", "^0::", "/proc/self/cgroup"}, time.Minute)
	must.NoError(t, err)
	must.StrHasSuffix(t, ".scope\n", string(result.Stdout))

	begin := time.Now()
	_, err = harness.ExecTask(task.ID, []string{"/bin/sleep", "1000"}, 100*time.Millisecond)
	must.ErrorContains(t, err, "not done after 100ms")
	must.Less(t, 10*time.Second, time.Since(begin))
}

func TestHostStopAndSignal(t *testing.T) {
	harness := newHarness(t, "")
	task := newTask(t, harness, modes["process_two"])
	startTask(t, harness, task)
	must.ErrorContains(t, harness.SignalTask(task.ID, "SIGNOPE"), `unknown signal "SIGNOPE"`)
	must.ErrorContains(t, harness.DestroyTask(task.ID, false), "running")
	must.NoError(t, harness.StopTask(task.ID, 20*time.Second, "kill"))
	must.False(t, waitTask(t, harness, task).Successful())
	must.NoError(t, harness.StopTask("unknown", time.Second, ""))
	must.NoError(t, harness.DestroyTask("unknown", true))
}

// TestHostStopWithUnknownSignal checks that an unknown signal does not stop the task at
// first, and that the task is killed when Nomad asks again.
func TestHostStopWithUnknownSignal(t *testing.T) {
	harness := newHarness(t, "")
	task := newTask(t, harness, modes["process_two"])
	startTask(t, harness, task)
	awaitLog(t, task, "stdout", "up\n")
	must.ErrorContains(t, harness.StopTask(task.ID, 20*time.Second, "SIGNOPE"), `unknown signal "SIGNOPE"`)
	must.ErrorContains(t, harness.DestroyTask(task.ID, false), "running")
	must.NoError(t, harness.StopTask(task.ID, 20*time.Second, "SIGNOPE"))
	must.NoError(t, harness.DestroyTask(task.ID, false))
}

// TestHostDestroyAfterStop checks that a stopped task can be destroyed at once, in every
// mode.
func TestHostDestroyAfterStop(t *testing.T) {
	for name, config := range modes {
		t.Run(name, func(t *testing.T) {
			harness := newHarness(t, "")
			for range 5 {
				task := newTask(t, harness, config)
				startTask(t, harness, task)
				must.NoError(t, harness.StopTask(task.ID, 20*time.Second, ""))
				must.NoError(t, harness.DestroyTask(task.ID, false))
			}
		})
	}
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

func TestHostStats(t *testing.T) {
	harness := newHarness(t, "")
	task := newTask(t, harness, script("while :; do :; done"))
	startTask(t, harness, task)
	ctx, cancel := context.WithCancel(t.Context())
	usages, err := harness.TaskStats(ctx, task.ID, 50*time.Millisecond)
	must.NoError(t, err)
	for usage := range usages {
		must.Positive(t, usage.ResourceUsage.MemoryStats.RSS)
		must.SliceContains(t, usage.ResourceUsage.MemoryStats.Measured, "RSS")
		if usage.ResourceUsage.CpuStats.Percent > 10 {
			break
		}
	}
	cancel()
	for range usages {
	}
}

// TestHostBadInput checks that each mistake has one clear error, and that nothing is left.
func TestHostBadInput(t *testing.T) {
	empty, bare, noInit := t.TempDir(), newImage(t, "usr"), newImage(t, "usr", "etc/os-release")
	for name, c := range map[string]struct{ config, want string }{
		"relative image": {`image = "./debian"`, `find ./debian on this client`},
		"missing image":  {`image = "/var/lib/machines/nope"`, `find /var/lib/machines/nope on this client`},
		"unknown image":  {`image = "nope"`, `machined knows no image "nope"`},
		"host's root":    {`image = ".host"`, `".host" is not an image to run`},
		"outside":        {`image = "` + empty + `"`, `is not below a directory that the operator allows with image_paths`},
		"no usr":         {`image = "` + newImage(t) + `"`, `has no /usr: it is not an operating system tree`},
		"no os-release":  {`image = "` + bare + `"`, `has no os-release file, which boot needs`},
		"no init":        {`image = "` + noInit + `"`, `has no init to boot`},
		"port":           {`image = "` + hosttest.Debian + `"` + "\nports = [\"x\"]\n", `ports[0]: port "x"`},
		"missing bind":   {command + "bind = { \"local/nope\" = \"/x\" }", "local/nope: no such file"},
	} {
		t.Run(name, func(t *testing.T) {
			harness := newHarness(t, "")
			task := newTask(t, harness, c.config)
			_, _, err := harness.StartTask(task)
			must.ErrorContains(t, err, c.want)
			must.Eq(t, 1, strings.Count(err.Error(), "config:"), must.Sprint(err))
			for _, dir := range []string{dirs.Default.Run, dirs.Default.State} {
				_, err := os.Stat(filepath.Join(dir, "machines", machine.Name(task.AllocID, task.Name)))
				must.ErrorIs(t, err, os.ErrNotExist)
			}
		})
	}
}

func TestHostFingerprint(t *testing.T) {
	harness := newHarness(t, "")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	fingerprints, err := harness.Fingerprint(ctx)
	must.NoError(t, err)
	fingerprint := <-fingerprints
	must.Eq(t, drivers.HealthStateHealthy, fingerprint.Health, must.Sprint(fingerprint.HealthDescription))
}

// TestHostReaper checks that a machine is removed whose task Nomad has forgotten, and that
// another client's machine stays.
func TestHostReaper(t *testing.T) {
	first, second := newHarness(t, ""), newHarness(t, "")
	forgotten, known, other := newTask(t, first, modes["process_two"]), newTask(t, second, modes["process_two"]), newTask(t, first, modes["process_two"])
	forgotten.NodeID, known.NodeID, other.NodeID = "ours", "ours", "theirs"
	for _, task := range []*drivers.TaskConfig{forgotten, other} {
		startTask(t, first, task)
	}
	startTask(t, second, known)
	d := second.Impl().(flushing).Driver
	must.NoError(t, d.reaper.Once(t.Context(), operator.DanglingMachines{CreationGrace: "1ns", DryRun: true}))
	must.True(t, isRunning(t, d, forgotten))
	must.NoError(t, d.reaper.Once(t.Context(), operator.DanglingMachines{CreationGrace: "1h"}))
	must.True(t, isRunning(t, d, forgotten))
	must.NoError(t, d.reaper.Once(t.Context(), operator.DanglingMachines{CreationGrace: "1ns"}))
	must.False(t, isRunning(t, d, forgotten))
	must.True(t, isRunning(t, d, known))
	must.True(t, isRunning(t, d, other))
}

func isRunning(t *testing.T, d *Driver, task *drivers.TaskConfig) bool {
	status, err := d.machines.Status(t.Context(), machine.Name(task.AllocID, task.Name))
	return err == nil && status.Exit == nil
}
