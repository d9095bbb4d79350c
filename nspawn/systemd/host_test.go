package systemd_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"
	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"

	"nomad-driver-nspawn/e2e/host/hosttest"
	"nomad-driver-nspawn/nspawn/systemd"
)

// hostWorld is the systemd that runs as PID 1.
func hostWorld(t *testing.T) *world {
	conn := systemd.New(systemd.SystemBus)
	t.Cleanup(conn.Close)
	dir := t.TempDir()
	fifo := func(unit string) string { return filepath.Join(dir, unit) }
	mkfifo := func(t *testing.T, unit string) string {
		if err := unix.Mkfifo(fifo(unit), 0o600); err != nil {
			must.ErrorIs(t, err, os.ErrExist)
		}
		return fifo(unit)
	}
	tell := func(t *testing.T, unit string, line int) {
		f, err := os.OpenFile(fifo(unit), os.O_RDWR, 0)
		must.NoError(t, err)
		// Not closed here: the line would be lost if the program has not opened the pipe
		// yet.
		t.Cleanup(func() { f.Close() })
		_, err = fmt.Fprintln(f, line)
		must.NoError(t, err)
	}
	return &world{
		conn: conn,
		idle: func(t *testing.T, unit string) []systemd.Property {
			return service("/bin/sh", "-c", `read status <>"$0"; exit $status`, mkfifo(t, unit))
		},
		exit: tell,
		slow: func(t *testing.T, unit string) ([]systemd.Property, func()) {
			properties := append(lasting(),
				plainCommand("ExecStartPre", "/bin/sh", "-c", "read line <>"+mkfifo(t, unit)),
				plainCommand("ExecStart", "/bin/sleep", "infinity"))
			return properties, func() { tell(t, unit, 0) }
		},
		broken: func(t *testing.T, unit string) []systemd.Property { return service("/no/such/program") },
		saying: func(t *testing.T, unit, line string) []systemd.Property {
			return service("/bin/echo", line)
		},
		reexec:   daemonReexec,
		machined: restartMachined,
		restartBus: func(t *testing.T) {
			before := systemctl(t, "show", "--property=MainPID", "dbus")
			// The restarts of other tests count towards the limit, 5 in 10 s.
			systemctl(t, "reset-failed", "dbus")
			systemctl(t, "restart", "dbus")
			must.NotEq(t, before, systemctl(t, "show", "--property=MainPID", "dbus"))
		},
	}
}

func systemctl(t *testing.T, args ...string) string {
	t.Helper()
	output, err := exec.Command("systemctl", args...).CombinedOutput()
	must.NoError(t, err, must.Sprint(string(output)))
	return string(output)
}

// daemonReexec returns when systemd's old connection to the bus is gone. Up to systemd
// 257, the new connection has the name at once, and systemctl waits for that. With 262,
// nobody has the name for a moment, and systemctl returns before that.
func daemonReexec(t *testing.T) {
	t.Helper()
	conn, err := systemd.SystemBus(t.Context())
	must.NoError(t, err)
	defer conn.Close()
	must.NoError(t, conn.AddMatchSignal(dbus.WithMatchMember("NameOwnerChanged"), dbus.WithMatchArg(0, "org.freedesktop.systemd1")))
	signals := make(chan *dbus.Signal, 10)
	conn.Signal(signals)
	systemctl(t, "daemon-reexec")
	timeout := time.After(patience)
	for {
		select {
		case signal := <-signals:
			if signal.Name == "org.freedesktop.DBus.NameOwnerChanged" && signal.Body[1] != "" {
				return
			}
		case <-timeout:
			t.Fatal("systemd did not leave the bus")
		}
	}
}

func TestHost(t *testing.T) {
	hosttest.Require(t)
	for name, test := range shared {
		t.Run(name, func(t *testing.T) { test(t, hostWorld(t)) })
	}
}

// restartMachined restarts machined as the bus would do at the first call. The bus would
// ask systemd to activate machined, and while systemd 262 is away from the bus after a
// restart of either, that request is lost for 25 s.
func restartMachined(t *testing.T) {
	// The restarts of other tests count towards its limit. A pattern is used because a
	// name that is not loaded, as before machined's first start, is an error.
	systemctl(t, "reset-failed", "systemd-machined*")
	systemctl(t, "restart", "systemd-machined")
}

func TestHostMachines(t *testing.T) {
	hosttest.Require(t)
	restartMachined(t)
	conn := systemd.New(systemd.SystemBus)
	defer conn.Close()

	// The host itself is a machine that always exists.
	names, err := conn.ListMachines(t.Context())
	must.NoError(t, err)
	must.SliceContains(t, names, ".host")
	machine, err := conn.Machine(t.Context(), ".host")
	must.NoError(t, err)
	must.Eq(t, 1, machine.Leader)

	const dir = "/var/lib/machines/nomad-driver-test"
	must.NoError(t, os.MkdirAll(dir+"/usr", 0o755))
	defer os.RemoveAll(dir)
	image, err := conn.Image(t.Context(), filepath.Base(dir))
	must.NoError(t, err)
	must.Eq(t, systemd.Image{Path: dir, Type: "directory"}, image)
}

func BenchmarkHostUnit(b *testing.B) {
	hosttest.Require(b)
	conn := systemd.New(systemd.SystemBus)
	defer conn.Close()
	for b.Loop() {
		_, err := conn.Unit(b.Context(), "dbus.service")
		must.NoError(b, err)
	}
}

func BenchmarkHostStartStop(b *testing.B) {
	hosttest.Require(b)
	conn := systemd.New(systemd.SystemBus)
	defer conn.Close()
	for b.Loop() {
		unit := unitName()
		must.NoError(b, conn.StartTransientUnit(b.Context(), unit, service("/bin/sleep", "infinity")))
		must.NoError(b, conn.StopUnit(b.Context(), unit))
	}
}
