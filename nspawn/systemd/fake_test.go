package systemd_test

import (
	"os"
	"regexp"
	"strconv"
	"testing"

	"github.com/godbus/dbus/v5"

	"nomad-driver-nspawn/nspawn/systemd"
	"nomad-driver-nspawn/nspawn/systemd/systemdtest"
)

var regexpVersion = regexp.MustCompile(`^\d{3}`)

func fakeWorld(t *testing.T) *world {
	fake := systemdtest.New(t)
	fake.OnStart(func(unit string, properties map[string]dbus.Variant) {
		if fd, ok := properties["StandardOutputFileDescriptor"].Value().(dbus.UnixFD); ok {
			duplicate, _ := os.OpenFile("/proc/self/fd/"+strconv.Itoa(int(fd)), os.O_WRONLY, 0)
			duplicate.WriteString("hello\n")
			duplicate.Close()
		}
	})
	return &world{
		conn: fake.Conn(),
		idle: func(t *testing.T, unit string) []systemd.Property { return service("/bin/idle") },
		exit: func(t *testing.T, unit string, status int) { fake.Exit(unit, status) },
		broken: func(t *testing.T, unit string) []systemd.Property {
			fake.JobResult(unit, "failed")
			return service("/no/such/program")
		},
		saying: func(t *testing.T, unit, line string) []systemd.Property { return service("/bin/echo", line) },
		slow: func(t *testing.T, unit string) ([]systemd.Property, func()) {
			return service("/bin/idle"), fake.HoldJobs()
		},
		reexec:     func(t *testing.T) { fake.Reexec() },
		restartBus: func(t *testing.T) { fake.StopBus(); fake.StartBus() },
	}
}

func TestFake(t *testing.T) {
	for name, test := range shared {
		t.Run(name, func(t *testing.T) { test(t, fakeWorld(t)) })
	}
}
