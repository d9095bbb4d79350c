package driver

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/shoenig/test/must"
)

// TestHostOverlay uses an overlay of the task's own directory, with files such as an
// artifact or a template writes.
func TestHostOverlay(t *testing.T) {
	harness := newHarness(t, "")
	const merge = `overlay = ["+/etc:local/conf:local/changes:/etc", "local/conf::/conf"]` + "\n"
	task := newTask(t, harness, merge+script("cat /etc/app && ls /etc/passwd && echo new >/etc/app && echo new >/conf/app && stat -c %u /etc /conf/app"))
	local := task.TaskDir().LocalDir
	for _, dir := range []string{"conf", "changes"} {
		must.NoError(t, os.Mkdir(filepath.Join(local, dir), 0o755))
	}
	must.NoError(t, os.WriteFile(local+"/conf/app", []byte("default\n"), 0o644))
	startTask(t, harness, task)
	must.Zero(t, waitTask(t, harness, task).ExitCode)
	must.NoError(t, harness.DestroyTask(task.ID, false))
	awaitLog(t, task, "stdout", "default\n/etc/passwd\n0\n0\n")
	must.FileContains(t, local+"/conf/app", "default")
	must.FileContains(t, local+"/changes/app", "new")
	left, err := filepath.Glob(local + "/.*")
	must.NoError(t, err)
	must.SliceEmpty(t, left)

	outside := newTask(t, harness, `overlay = ["local/conf:local/link:/etc"]`+"\n"+script("true"))
	must.NoError(t, os.Mkdir(outside.TaskDir().LocalDir+"/conf", 0o755))
	must.NoError(t, os.Symlink("/etc", outside.TaskDir().LocalDir+"/link"))
	_, _, err = harness.StartTask(outside)
	must.ErrorContains(t, err, "overlay to /etc: ")
	must.ErrorContains(t, err, "is a symbolic link that leads out of the task's directory, to /etc")
}
