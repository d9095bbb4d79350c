package systemdtest

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/shoenig/test/must"
)

// bus is a private dbus-daemon. It has the built-in limits of dbus-daemon, which a system
// bus has, too.
type bus struct {
	t      testing.TB
	socket string
	config string
	daemon *exec.Cmd
}

const busConfig = `<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN" "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <listen>unix:path=%s</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow user="*"/>
    <allow own="*"/>
    <allow send_destination="*"/>
    <allow receive_sender="*"/>
  </policy>
</busconfig>
`

// newBus starts a dbus-daemon, or skips the test if it is not installed.
func newBus(t testing.TB) *bus {
	t.Helper()
	if _, err := exec.LookPath("dbus-daemon"); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("dbus-daemon is missing: install the package dbus")
		}
		t.Skip("SKIPPED: dbus-daemon is missing: install the package dbus")
	}
	// t.TempDir is not used: with a long test name, the socket's path would not fit into
	// sun_path.
	dir, err := os.MkdirTemp("", "bus")
	must.NoError(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	b := &bus{t: t, socket: filepath.Join(dir, "socket"), config: filepath.Join(dir, "config")}
	must.NoError(t, os.WriteFile(b.config, fmt.Appendf(nil, busConfig, b.socket), 0o600))
	b.start()
	t.Cleanup(b.stop)
	return b
}

func (b *bus) address() string { return "unix:path=" + b.socket }

// start returns when the daemon is listening.
func (b *bus) start() {
	b.t.Helper()
	daemon := exec.Command("dbus-daemon", "--nofork", "--nopidfile", "--config-file="+b.config, "--print-address")
	stdout, err := daemon.StdoutPipe()
	must.NoError(b.t, err)
	must.NoError(b.t, daemon.Start())
	b.daemon = daemon
	_, err = bufio.NewReader(stdout).ReadString('\n')
	must.NoError(b.t, err, must.Sprint("dbus-daemon did not start"))
}

func (b *bus) stop() {
	if b.daemon == nil {
		return
	}
	b.daemon.Process.Kill()
	b.daemon.Wait()
	b.daemon = nil
}
