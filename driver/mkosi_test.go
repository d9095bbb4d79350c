package driver

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"nomad-driver-nspawn/e2e/host/hosttest"
)

// TestHostMkosi boots a tree and a disk as mkosi makes them, which is a first boot
// (machine-id(5)). The guest must have the machine ID of its allocation, not one of its
// own, and power off.
func TestHostMkosi(t *testing.T) {
	for _, image := range []string{hosttest.MkosiTree, hosttest.MkosiDisk} {
		t.Run(filepath.Base(image), func(t *testing.T) { bootMkosi(t, image) })
	}
}

func bootMkosi(t *testing.T, image string) {
	harness := newHarness(t, "")
	task := newTask(t, harness, fmt.Sprintf("image = %q", image))
	startTask(t, harness, task)
	awaitEvent(t, harness, "Machine is ready")
	for want, command := range map[string][]string{
		"running\n": {"systemctl", "is-system-running", "--wait"},
		strings.ReplaceAll(task.AllocID, "-", "") + "\n": {"cat", "/etc/machine-id"},
	} {
		result, err := harness.ExecTask(task.ID, command, time.Minute)
		must.NoError(t, err)
		must.EqOp(t, want, string(result.Stdout))
	}
	must.NoError(t, harness.StopTask(task.ID, 20*time.Second, ""))
	must.Zero(t, waitTask(t, harness, task).ExitCode)
}
