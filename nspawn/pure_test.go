package nspawn

import (
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"

	"nomad-driver-nspawn/nspawn/network"
	"nomad-driver-nspawn/nspawn/systemd"
)

func TestArgvByVersion(t *testing.T) {
	const option = "--restrict-address-families="
	args := func(version int) []string {
		return argv(Spec{Machine: "m", Command: []string{"/bin/true"}}, tool{path: "systemd-nspawn", version: version}, DefaultDirs)
	}
	must.SliceNotContains(t, args(260), option) // unknown there
	must.SliceContains(t, args(261), option)
}

// A command that begins with a dash must not become an option of nspawn.
func TestArgvEndsOptionsBeforeCommand(t *testing.T) {
	args := argv(Spec{Machine: "m", Command: []string{"--bind=/", "x"}}, tool{}, DefaultDirs)
	must.Eq(t, []string{"--", "--bind=/", "x"}, args[len(args)-3:])
	must.Eq(t, slices.Index(args, "--"), len(args)-3)
}

func TestEnvironmentIsNotOnTheCommandLine(t *testing.T) {
	env := map[string]string{"TOKEN": "secret", "A": ""}
	must.Eq(t, []string{"--setenv=A", "--setenv=TOKEN"}, environmentArgs(env))
	must.Eq(t, "A=\"\"\nTOKEN=\"secret\"\n", environmentFile(env))
}

func TestEnvironmentFileQuotes(t *testing.T) {
	must.Eq(t, "A=\"a\\\"b\\\\c\\$d\\`e\nf #;\"\n", environmentFile(map[string]string{"A": "a\"b\\c$d`e\nf #;"}))
}

// What would act on systemd-nspawn itself must not get into its environment.
func TestHostVariablesStayOutOfTheFile(t *testing.T) {
	for _, name := range []string{
		"LD_PRELOAD", "LD_LIBRARY_PATH", "LD_AUDIT", "GLIBC_TUNABLES", "GCONV_PATH", "PATH", "TMPDIR", "NOTIFY_SOCKET",
		"SYSTEMD_SECCOMP", "SYSTEMD_NSPAWN_API_VFS_WRITABLE", "SYSTEMD_LOG_TARGET", "OPENSSL_CONF", "OPENSSL_MODULES",
		"DBUS_SYSTEM_BUS_ADDRESS", "LIBMOUNT_FSTAB", "XTABLES_LIBDIR", "TSS2_TCTI", "LISTEN_FDS", "MALLOC_TRACE",
		"SSL_CERT_FILE", "PKCS11_PROVIDER_MODULE", "TPM2OPENSSL_TCTI", "TPM2_PKCS11_STORE", "SD_EVENT_PROFILE_DELAYS", "DM_DISABLE_UDEV", "SHELLOPTS",
	} {
		env := map[string]string{name: "value"}
		must.Eq(t, "", environmentFile(env), must.Sprint(name))
		must.Eq(t, []string{"--setenv=" + name + "=value"}, environmentArgs(env))
	}
	for _, name := range []string{
		"PASSWORD", "NOMAD_TOKEN", "VAULT_TOKEN", "XLD_PRELOAD", "TZX", "DB_PATH",
		"SSL_KEYSTORE_PASSWORD", "SSL_KEY", "PKCS11_PIN", "PIN", "TPM2_PIN", "TPM2_PKCS11_PIN", "SD_TOKEN", "DM_PASSWORD", "DBUS_COOKIE", "SHELL_TOKEN",
	} {
		must.False(t, hostVariables.MatchString(name), must.Sprint(name))
	}
}

func TestParseCPUs(t *testing.T) {
	for list, want := range map[string][]int{"0": {0}, "0,2-4": {0, 2, 3, 4}, "7, 9": {7, 9}} {
		got, err := ParseCPUs(list)
		must.NoError(t, err)
		must.Eq(t, want, got)
	}
	for _, list := range []string{"", "a", "3-1", "-1", "0-99999", "1,,2"} {
		_, err := ParseCPUs(list)
		must.Error(t, err, must.Sprint(list))
	}
	must.Eq(t, []byte{0b00001101, 0b00000010}, cpuMask([]int{0, 2, 3, 9}))
}

func TestParseSignal(t *testing.T) {
	for name, want := range map[string]unix.Signal{
		"SIGTERM": unix.SIGTERM, "term": unix.SIGTERM, "Hup": unix.SIGHUP, "sigusr1": unix.SIGUSR1,
		"SIGRTMIN+3": 37, "rtmin": 34, "RTMAX-1": 63, "9": unix.SIGKILL,
	} {
		got, err := ParseSignal(name)
		must.NoError(t, err)
		must.Eq(t, want, got, must.Sprint(name))
	}
	for _, name := range []string{"", "SIGFOO", "0", "65", "-1", "RTMIN-1", "RTMIN+31", "RTMIN+", "RTMINx"} {
		_, err := ParseSignal(name)
		must.Error(t, err, must.Sprint(name))
	}
}

func TestEnded(t *testing.T) {
	for _, c := range []struct {
		unit  systemd.UnitState
		exit  Exit
		ended bool
	}{
		{systemd.UnitState{ActiveState: "active", SubState: "running"}, Exit{}, false},
		{systemd.UnitState{ActiveState: "activating", SubState: "start"}, Exit{}, false},
		{systemd.UnitState{ActiveState: "activating", SubState: "auto-restart", ExecMainCode: 1, ExecMainStatus: 133}, Exit{}, false},
		{systemd.UnitState{ActiveState: "deactivating", SubState: "stop-sigterm"}, Exit{}, false},
		{systemd.UnitState{ActiveState: "active", SubState: "exited", ExecMainCode: 1}, Exit{}, true},
		{systemd.UnitState{ActiveState: "failed", SubState: "failed", ExecMainCode: 1, ExecMainStatus: 7}, Exit{Code: 7}, true},
		{systemd.UnitState{ActiveState: "failed", SubState: "failed", ExecMainCode: 2, ExecMainStatus: 9}, Exit{Code: 137, Signal: 9}, true},
		{systemd.UnitState{ActiveState: "failed", SubState: "failed", Result: "oom-kill", ExecMainCode: 1, ExecMainStatus: 255}, Exit{Code: 255, OOMKilled: true}, true},
	} {
		exit, ok := ended(c.unit)
		must.Eq(t, c.ended, ok, must.Sprintf("%+v", c.unit))
		must.Eq(t, c.exit, exit, must.Sprintf("%+v", c.unit))
	}
}

func TestParseNotification(t *testing.T) {
	must.Eq(t, notification{"STATUS": "Container running.", "X_NSPAWN_LEADER_PID": "898", "READY": "1"},
		parseNotification("STATUS=Container running.\nX_NSPAWN_LEADER_PID=898\nREADY=1"))
	must.Eq(t, notification{}, parseNotification("\nnothing\n"))
}

func file(content string) *fstest.MapFile { return &fstest.MapFile{Data: []byte(content)} }

func TestUsage(t *testing.T) {
	usage, err := readUsage(fstest.MapFS{
		"cpu.stat":            file("usage_usec 30\nuser_usec 20\nsystem_usec 10\nnr_periods 5\nnr_throttled 2\nthrottled_usec 7\n"),
		"memory.stat":         file("anon 100\nfile 200\nkernel 300\n"),
		"memory.current":      file("600\n"),
		"memory.peak":         file("700\n"),
		"memory.swap.current": file("0\n"),
	}, nil)
	must.NoError(t, err)
	must.Eq(t, 20*time.Microsecond, usage.CPUUser)
	must.Eq(t, 10*time.Microsecond, usage.CPUSystem)
	must.Eq(t, 2, *usage.ThrottledPeriods)
	must.Eq(t, 7*time.Microsecond, *usage.ThrottledTime)
	must.Eq(t, []uint64{100, 200, 300, 600, 700, 0}, []uint64{
		*usage.Memory.RSS, *usage.Memory.Cache, *usage.Memory.Kernel,
		*usage.Memory.Current, *usage.Memory.Peak, *usage.Memory.Swap,
	})
}

// Without controllers, what is not known is left out, not 0.
func TestUsageWithoutControllers(t *testing.T) {
	usage, err := readUsage(fstest.MapFS{
		"cpu.stat":                        file("usage_usec 30\nuser_usec 20\nsystem_usec 10\n"),
		"supervisor/cgroup.procs":         file("11\n"),
		"payload/init.scope/cgroup.procs": file("12\n13\n"),
	}, func(pid int) uint64 { return uint64(pid) * 1000 })
	must.NoError(t, err)
	must.Eq(t, 36000, *usage.Memory.RSS)
	must.Nil(t, usage.ThrottledPeriods)
	must.Nil(t, usage.Memory.Current)
	must.Nil(t, usage.Memory.Swap)
}

func TestUsageOfBrokenFiles(t *testing.T) {
	_, err := readUsage(fstest.MapFS{"cpu.stat": file("usage_usec x\n")}, nil)
	must.ErrorContains(t, err, `parse cpu.stat: line "usage_usec x`)
	_, err = readUsage(fstest.MapFS{}, nil)
	must.ErrorContains(t, err, "cpu.stat")
}

func TestMajorVersion(t *testing.T) {
	for release, want := range map[string]int{"252.39-1~deb12u1": 252, "257.13-1~deb13u1": 257, "262~rc1": 262, "v255": 255} {
		got, err := majorVersion(release)
		must.NoError(t, err)
		must.Eq(t, want, got)
	}
	_, err := majorVersion("none")
	must.Error(t, err)
}

func TestOverlap(t *testing.T) {
	must.True(t, overlap("/a", "/a"))
	must.True(t, overlap("/a", "/a/b"))
	must.True(t, overlap("/a/b", "/a"))
	must.False(t, overlap("/a", "/ab"))
}

func TestSpecHidesNoSecretInProperties(t *testing.T) {
	spec := Spec{Machine: "m", Environment: map[string]string{"TOKEN": "the-secret"}, Command: []string{"x"}}
	must.False(t, strings.Contains(Describe(spec, 262), "the-secret"))
}

func TestMessagesOf(t *testing.T) {
	entries := `{"MESSAGE":"of another unit","_PID":"10","_SYSTEMD_UNIT":"b.service"}
{"MESSAGE":"of the unit","_PID":"11","_SYSTEMD_UNIT":"a.service"}
{"MESSAGE":"of its child, gone","_PID":"13"}
{"MESSAGE":"of another unit","_PID":"20","_SYSTEMD_UNIT":"b.service"}
{"MESSAGE":"of another's child, gone","_PID":"21"}
{"MESSAGE":"of an older process, gone","_PID":"9"}
{"MESSAGE":[102,111],"_PID":"11","_SYSTEMD_UNIT":"a.service"}
`
	must.Eq(t, []string{"of the unit", "of its child, gone"}, messagesOf([]byte(entries), "a.service", 11))
}

func TestCommandIsPlainUnlessItMustNotBeExpanded(t *testing.T) {
	must.Eq(t, "ExecStart", command([]string{"/usr/bin/systemd-nspawn", "a b", "%n"}).Name)
	must.Eq(t, "ExecStartEx", command([]string{"/usr/bin/systemd-nspawn", "$HOME"}).Name)
	must.Eq(t, "ExecStartEx", command([]string{"/usr/bin/systemd-nspawn", "a ; b"}).Name)
}

func TestForwards(t *testing.T) {
	spec := Spec{Machine: "m", Command: []string{"x", "--port=tcp:1:1"}, Network: Network{Veth: true, Ports: []Port{{Host: 8080, Container: 80}}}}
	want := []network.Forward{{Protocol: "tcp", HostPort: 8080}, {Protocol: "udp", HostPort: 8080}}
	must.Eq(t, want, forwards(argv(spec, tool{}, DefaultDirs)))
}
