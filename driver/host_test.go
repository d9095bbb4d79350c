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

	"github.com/hashicorp/nomad/plugins/drivers"
	"github.com/hashicorp/nomad/plugins/drivers/testutils"
	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"

	"nomad-driver-nspawn/driver/operator"
	"nomad-driver-nspawn/e2e/host/hosttest"
	"nomad-driver-nspawn/nspawn/dirs"
	"nomad-driver-nspawn/nspawn/machine"
)

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

var taskNumber atomic.Int32

const command = `
  image        = "` + hosttest.Busybox + `"
  network_veth = false
  command      = "/bin/sh"
`

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
