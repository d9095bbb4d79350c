package nspawn

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"

	"nomad-driver-nspawn/e2e/host/hosttest"
	"nomad-driver-nspawn/nspawn/dirs"
	"nomad-driver-nspawn/nspawn/enter"
	"nomad-driver-nspawn/nspawn/machine"
	"nomad-driver-nspawn/nspawn/network"
	"nomad-driver-nspawn/nspawn/parts"
)

func TestHostExitCodes(t *testing.T) {
	m := newManager(t)
	for _, mode := range []machine.Mode{machine.ProcessOne, machine.ProcessTwo} {
		for _, code := range []int{0, 7} {
			spec := newMachine(t, m, fmt.Sprintf("echo out; echo err >&2; exit %d", code))
			spec.Mode = mode
			out := mustStart(t, m, spec)
			must.Eq(t, Exit{Code: code}, mustWait(t, m, spec.Machine))
			// The record stays until the machine is removed.
			status, err := m.Status(t.Context(), spec.Machine)
			must.NoError(t, err)
			must.Eq(t, &Exit{Code: code}, status.Exit)
			must.NoError(t, m.Remove(t.Context(), spec.Machine))
			must.Eq(t, "out\n", <-out.stdout)
			must.Eq(t, "err\n", <-out.stderr) // and no message of nspawn
		}
	}
}

func TestHostSignalReachesPayload(t *testing.T) {
	m := newManager(t)
	for _, mode := range []machine.Mode{machine.ProcessOne, machine.ProcessTwo} {
		spec := newMachine(t, m, "trap 'exit 42' USR1; while :; do sleep 1000 & wait $!; done")
		spec.Mode = mode
		mustStart(t, m, spec)
		awaitTrap(t, m, spec)
		must.NoError(t, m.Signal(t.Context(), spec.Machine, mode, unix.SIGUSR1))
		must.Eq(t, Exit{Code: 42}, mustWait(t, m, spec.Machine))
		must.ErrorIs(t, m.Signal(t.Context(), spec.Machine, mode, unix.SIGUSR1), os.ErrProcessDone)
		must.NoError(t, m.Stop(t.Context(), spec.Machine, mode, unix.SIGTERM, time.Second, told(t))) // it is already stopped
	}
}

// TestHostNotifyReady has a command report that it is ready. nspawn accepts that only from
// PID 1 ("Received notify message from process that is not the payload's PID 1"), in whose
// name root may speak. nspawn does not confirm that it has read the message.
func TestHostNotifyReady(t *testing.T) {
	m := newManager(t)
	for _, mode := range []machine.Mode{machine.ProcessOne, machine.ProcessTwo} {
		spec := newMachine(t, m, "systemd-notify --pid=1 --no-block --ready && exec sleep 1000")
		spec.Mode, spec.Root.Image, spec.NotifyReady = mode, hosttest.Debian, true
		awaitEvent(t, mustStart(t, m, spec), Ready)
	}
}

// TestHostEnvironmentArrives passes an environment that breaks careless quoting, or would
// add a second variable, or change nspawn.
func TestHostEnvironmentArrives(t *testing.T) {
	m := newManager(t)
	want := map[string]string{
		"QUOTES": `"'\` + "`$HOME ${HOME} $(id) %%n", "LINES": "a\nB=c\n\n", "EMPTY": "", "UNICODE": "zwölf ☕",
		"COMMENT": "# ; x", "LD_PRELOAD": "/nonexistent.so", "SYSTEMD_LOG_LEVEL": "debug", "PATH": "/bin:/x y",
	}
	spec := newMachine(t, m, `for v in QUOTES LINES EMPTY UNICODE COMMENT LD_PRELOAD SYSTEMD_LOG_LEVEL PATH; do eval "printf '%s=%s\\0' $v \"\$$v\""; done`)
	spec.Environment = want
	out := mustStart(t, m, spec)
	must.Eq(t, Exit{}, mustWait(t, m, spec.Machine))
	must.NoError(t, m.Remove(t.Context(), spec.Machine))
	got := map[string]string{}
	for entry := range strings.SplitSeq(strings.TrimSuffix(<-out.stdout, "\x00"), "\x00") {
		name, value, _ := strings.Cut(entry, "=")
		got[name] = value
	}
	must.Eq(t, want, got)
}

func TestHostArgumentsArrive(t *testing.T) {
	m := newManager(t)
	spec := newMachine(t, m, "")
	spec.Command = []string{"/bin/printf", "[%s]", "$HOME", "${X}", "%n", "a b", "", "line\n2", "--help", `"\`}
	out := mustStart(t, m, spec)
	must.Eq(t, Exit{}, mustWait(t, m, spec.Machine))
	must.NoError(t, m.Remove(t.Context(), spec.Machine))
	must.Eq(t, "[$HOME][${X}][%n][a b][][line\n2][--help][\"\\]", <-out.stdout)
}

func TestHostRootIsPrivateAndDiscarded(t *testing.T) {
	m := newManager(t)
	for range 2 { // the second run must see nothing of the first
		spec := newMachine(t, m, "ls /left; stat -c %u /etc /bin/busybox; echo x >/left; cat /etc/mine")
		spec.Root.Files = []machine.File{{Path: "/etc/mine", Content: "mine\n"}, {Path: "/etc/passwd", Content: "", Keep: true}}
		out := mustStart(t, m, spec)
		must.Eq(t, Exit{}, mustWait(t, m, spec.Machine))
		must.NoError(t, m.Remove(t.Context(), spec.Machine))
		must.Eq(t, "0\n0\nmine\n", <-out.stdout)
	}
}

// TestHostStartReplacesLeftover checks that a start succeeds whatever an earlier start
// left, running or not.
func TestHostStartReplacesLeftover(t *testing.T) {
	m := newManager(t)
	for _, script := range []string{"sleep 1000", "exit 3"} {
		spec := newMachine(t, m, script)
		mustStart(t, m, spec)
		spec.Command[2] = "exit 9"
		mustStart(t, m, spec)
		must.Eq(t, Exit{Code: 9}, mustWait(t, m, spec.Machine))
	}
}

func TestHostStartErrorLeavesNothing(t *testing.T) {
	m := newManager(t)
	for name, c := range map[string]struct {
		breakIt func(*machine.Spec)
		want    string
	}{
		"missing bind":  {func(s *machine.Spec) { s.Binds = []machine.Bind{{Source: "/nonexistent", Destination: "/x"}} }, "/nonexistent"},
		"missing image": {func(s *machine.Spec) { s.Root.Image = "/nonexistent" }, "/nonexistent"},
		"bad option":    {func(s *machine.Spec) { s.ResolvConf = "perhaps" }, "perhaps"},
		"bad netns":     {func(s *machine.Spec) { s.Network.Namespace = "/nonexistent" }, "/nonexistent"},
	} {
		t.Run(name, func(t *testing.T) {
			spec := newMachine(t, m, "true")
			c.breakIt(&spec)
			_, err := start(t, m, spec)
			must.ErrorContains(t, err, c.want)
			t.Log(err)
			must.Eq(t, nil, traces(t, m, spec.Machine))
		})
	}
}

func TestHostInPlace(t *testing.T) {
	m := newManager(t)
	image := filepath.Join("/var/lib/machines", "in-place")
	must.NoError(t, exec.Command("cp", "-a", hosttest.Busybox, image).Run())
	t.Cleanup(func() { must.NoError(t, exec.Command("rm", "-rf", image).Run()) })

	first := newMachine(t, m, "echo x >/kept; while :; do sleep 1000 & wait $!; done")
	first.Root.Image, first.Root.InPlace = image, true
	mustStart(t, m, first)
	awaitTrap(t, m, first)

	second := newMachine(t, m, "true")
	second.Root = first.Root
	_, err := start(t, m, second)
	var busy *parts.BusyError
	must.True(t, errors.As(err, &busy), must.Sprint(err))
	must.Eq(t, first.Machine, busy.Holder)

	must.NoError(t, m.Remove(t.Context(), first.Machine))
	second.Command[2] = "cat /kept"
	out := mustStart(t, m, second)
	must.Eq(t, Exit{}, mustWait(t, m, second.Machine))
	must.NoError(t, m.Remove(t.Context(), second.Machine))
	must.Eq(t, "x\n", <-out.stdout)
	var stat unix.Stat_t
	must.NoError(t, unix.Stat(image+"/kept", &stat))
	must.Eq(t, 0, stat.Uid)
}

func TestHostUsageAndExec(t *testing.T) {
	m := newManager(t)
	spec := newMachine(t, m, "sleep 1000")
	mustStart(t, m, spec)
	usage, err := m.Usage(spec.Machine)
	must.NoError(t, err)
	must.Positive(t, usage.CPUUser+usage.CPUSystem)
	must.Positive(t, *usage.Memory.RSS)
	var out strings.Builder
	code, err := m.Exec(t.Context(), spec.Machine, enter.Command{Argv: []string{"/bin/sh", "-c", "echo in; exit 3"}, Stdout: &out})
	must.NoError(t, err)
	must.Eq(t, 3, code)
	must.Eq(t, "in\n", out.String())
}

func TestHostMachines(t *testing.T) {
	m := newManager(t)
	spec := newMachine(t, m, "sleep 1000")
	spec.JournalFields = map[string]string{"NOMAD_NODE_ID": "n1", "NOMAD_X": "a=b"}
	mustStart(t, m, spec)
	records, err := m.Machines(t.Context())
	must.NoError(t, err)
	i := slices.IndexFunc(records, func(r Record) bool { return r.Machine == spec.Machine })
	must.NotEq(t, -1, i)
	must.Eq(t, spec.JournalFields, records[i].Fields)
	must.Less(t, time.Minute, time.Since(records[i].Started))
}

func TestHostLooksHealthy(t *testing.T) {
	m := newManager(t)
	host := DetectHost(t.Context(), m.bus, m.dirs)
	must.SliceEmpty(t, host.Problems)
	must.NoError(t, host.Overlay)
	must.NoError(t, host.UserNamespaces)
	must.True(t, host.Machined)
	must.True(t, host.Networkd)
	must.GreaterEq(t, MinVersion, host.Version)
}

// TestHostReboot checks that a reboot of the guest is not the end of the machine.
func TestHostReboot(t *testing.T) {
	m := newManager(t)
	spec := newBooted(t, m)
	out := mustStart(t, m, spec)
	awaitEvent(t, out, Ready)
	must.NoError(t, exec.Command("systemctl", "daemon-reload").Run()) // see command
	code, err := m.Exec(t.Context(), spec.Machine, enter.Command{Argv: []string{"touch", "/kept"}})
	must.NoError(t, err)
	must.Zero(t, code)
	_, err = m.Exec(t.Context(), spec.Machine, enter.Command{Argv: []string{"systemctl", "reboot"}})
	must.NoError(t, err)
	awaitEvent(t, out, Rebooted)
	awaitEvent(t, out, Ready)
	code, err = m.Exec(t.Context(), spec.Machine, enter.Command{Argv: []string{"test", "-e", "/kept"}})
	must.NoError(t, err)
	must.Zero(t, code)
	_, err = m.Exec(t.Context(), spec.Machine, enter.Command{Argv: []string{"systemctl", "poweroff"}})
	must.NoError(t, err)
	awaitEvent(t, out, Ended)
	must.Eq(t, Exit{}, mustWait(t, m, spec.Machine))
}

// TestHostJournalLink checks that the link to the guest's journal is removed with the
// machine.
func TestHostJournalLink(t *testing.T) {
	m := newManager(t)
	image := filepath.Join("/var/lib/machines", "journal-in-place")
	must.NoError(t, exec.Command("cp", "-a", hosttest.Debian, image).Run())
	t.Cleanup(func() { must.NoError(t, exec.Command("rm", "-rf", image).Run()) })
	for id, root := range map[string]machine.Root{
		"5b3d7a52-9c1e-4f0a-8e6d-0123456789ab": {Image: hosttest.Debian, UserNamespace: true},
		"5b3d7a52-9c1e-4f0a-8e6d-0123456789ac": {Image: image, InPlace: true},
	} {
		spec := newBooted(t, m)
		spec.Machine, spec.UUID, spec.LinkJournal, spec.Root = machine.Name(id, "journal"), id, "try-guest", root
		t.Cleanup(func() { must.NoError(t, m.Remove(context.Background(), spec.Machine)) })
		awaitEvent(t, mustStart(t, m, spec), Ready)
		link := filepath.Join("/var/log/journal", strings.ReplaceAll(id, "-", ""))
		_, err := os.Readlink(link)
		must.NoError(t, err)
		must.NoError(t, m.Remove(t.Context(), spec.Machine))
		_, err = os.Lstat(link)
		must.ErrorIs(t, err, os.ErrNotExist)
	}
}

// TestHostDiskLimitRefused checks that nothing is started if a limit cannot be enforced.
func TestHostDiskLimitRefused(t *testing.T) {
	bus, state := newManager(t).bus, t.TempDir()
	must.NoError(t, unix.Mount("tmpfs", state, "tmpfs", 0, ""))
	t.Cleanup(func() { must.NoError(t, unix.Unmount(state, 0)) })
	m := NewManager(bus, dirs.Dirs{Run: dirs.Default.Run, State: state}, network.New())
	spec := newMachine(t, m, "true")
	spec.Root.WritableLayer.Max = 1 << 30
	_, err := start(t, m, spec)
	must.EqError(t, err, "the file system below "+state+"/machines, tmpfs, does not limit directories: "+
		"mount ext4 or xfs with prjquota, or btrfs with quotas there; or set in_memory in the disk block")
	must.Eq(t, nil, traces(t, m, spec.Machine))
	must.EqOp(t, "", DetectHost(t.Context(), m.bus, m.dirs).QuotaKind)
}
