package driver

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"nomad-driver-nspawn/e2e/host/hosttest"
)

// The log of a booted guest is text: lines that end in LF, without what would color them
// on a screen.
func TestHostConsoleIsText(t *testing.T) {
	harness := newHarness(t, "")
	task := newTask(t, harness, `image = "`+hosttest.Debian+`"`)
	startTask(t, harness, task)
	awaitEvent(t, harness, "Machine is ready")
	must.NoError(t, harness.StopTask(task.ID, time.Minute, ""))
	path := filepath.Join(task.TaskDir().LogDir, task.Name+".stdout.0")
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		text, err := os.ReadFile(path)
		if err == nil && strings.Contains(string(text), "Halting system.") { // the last that it says
			must.False(t, strings.ContainsAny(string(text), "\r\x1b"), must.Sprintf("%q", text))
			return
		}
		must.True(t, time.Now().Before(deadline), must.Sprintf("%v: %q", err, text))
	}
}
