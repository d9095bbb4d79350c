package nspawn

import (
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"

	"nomad-driver-nspawn/nspawn/machine"
	"nomad-driver-nspawn/nspawn/network/links"
	"nomad-driver-nspawn/nspawn/network/ports"
	"nomad-driver-nspawn/nspawn/stage"
)

func TestHostMounts(t *testing.T) {
	m := newManager(t)
	for name, c := range map[string]struct {
		root   machine.Root
		script string
	}{
		"tmpfs":             {machine.Root{Tmpfs: []machine.Tmpfs{{Destination: "/mine", Options: []string{"size=1M"}}, {Destination: "/etc"}}}, `grep " /mine tmpfs .*size=1024k" /proc/mounts && echo x >/mine/x && ! ls /etc/passwd`},
		"tmpfs, odd path":   {machine.Root{Tmpfs: []machine.Tmpfs{{Destination: `/a:b\c`, Options: []string{"size=1M"}}}}, `grep 'a:b.*c tmpfs .*size=1024k' /proc/mounts && echo x >'/a:b\c/x'`},
		"inaccessible":      {machine.Root{Inaccessible: []string{"/etc"}}, "! ls /etc/passwd"},
		"inaccessible, odd": {machine.Root{Directories: []string{`/a:b\c`}, Inaccessible: []string{`/a:b\c`}}, `test -e '/a:b\c' && ! ls '/a:b\c/'`},
		"volatile state":    {machine.Root{Volatile: "state"}, "! touch /x && touch /var/x && ls /etc/passwd"},
		"volatile yes":      {machine.Root{Volatile: "yes"}, "touch /x && ! touch /usr/x && ! ls /etc/shadow"},
		"volatile overlay":  {machine.Root{Volatile: "overlay"}, "touch /x /usr/x"},
		"volatile, read it": {machine.Root{Volatile: "no", ReadOnly: true}, "! touch /x"},
	} {
		t.Run(name, func(t *testing.T) {
			spec := newMachine(t, m, c.script)
			c.root.Image, c.root.UserNamespace = spec.Root.Image, true
			spec.Root = c.root
			out := mustStart(t, m, spec)
			exit := mustWait(t, m, spec.Machine)
			must.NoError(t, m.Remove(t.Context(), spec.Machine))
			must.Eq(t, Exit{}, exit, must.Sprint(<-out.stdout, <-out.stderr))
		})
	}
}

// TestHostBindsInReadOnlyRoot checks that mount points are created even where nspawn could
// not, and belong to root.
func TestHostBindsInReadOnlyRoot(t *testing.T) {
	m := newManager(t)
	dir, file := t.TempDir(), filepath.Join(t.TempDir(), "file")
	must.NoError(t, os.WriteFile(file, []byte("x\n"), 0o644))
	spec := newMachine(t, m, "cat /a/b/file && touch /new/dir/y && stat -c %u /a /a/b /new && ! touch /z")
	spec.Root.ReadOnly = true
	spec.Binds = []machine.Bind{{Source: dir, Destination: "/new/dir"}, {Source: file, Destination: "/a/b/file", ReadOnly: true}}
	out := mustStart(t, m, spec)
	exit := mustWait(t, m, spec.Machine)
	must.NoError(t, m.Remove(t.Context(), spec.Machine))
	must.Eq(t, "x\n0\n0\n0\n", <-out.stdout)
	must.Eq(t, Exit{}, exit, must.Sprint(<-out.stderr))
	var stat unix.Stat_t
	must.NoError(t, unix.Stat(dir+"/y", &stat))
	must.Eq(t, 0, stat.Uid)
}

// TestHostBindInBind mounts a volume in the task's directory, and checks that nothing of
// the machine is mounted on the host.
func TestHostBindInBind(t *testing.T) {
	m := newManager(t)
	local, volume, file := t.TempDir(), t.TempDir(), filepath.Join(t.TempDir(), "file")
	must.NoError(t, os.WriteFile(file, []byte("content\n"), 0o644))
	must.NoError(t, os.Chmod(volume, 0o755))
	must.NoError(t, stage.PrepareDir(m.dirs.Pins())) // it stays mounted
	before := mountPoints(t)
	spec := newMachine(t, m, `stat -c '%u %n' /local /local/data/deep && cat /local/file && echo x >/local/data/deep/x`)
	spec.Root.UserNamespace = true
	spec.Binds = []machine.Bind{
		{Source: local, Destination: "/local", ChownFallback: true},
		{Source: volume, Destination: "/local/data/deep"},
		{Source: file, Destination: "/local/file", ReadOnly: true},
	}
	out := mustStart(t, m, spec)
	must.Eq(t, before, mountPoints(t))
	exit := mustWait(t, m, spec.Machine)
	must.NoError(t, m.Remove(t.Context(), spec.Machine))
	must.Eq(t, Exit{}, exit)
	must.Eq(t, "0 /local\n0 /local/data/deep\ncontent\n", <-out.stdout, must.Sprint(<-out.stderr))
	for _, made := range []string{local + "/data", local + "/data/deep", volume + "/x"} {
		var stat unix.Stat_t
		must.NoError(t, unix.Stat(made, &stat))
		must.Zero(t, stat.Uid, must.Sprint(made))
	}
}

// TestHostBindThatCannotBeMapped uses a file system that cannot be ID-mapped, the overlay
// of the disposable host's own root. A directory that only this machine uses is given to
// the machine's root; everything else is refused.
func TestHostBindThatCannotBeMapped(t *testing.T) {
	m := newManager(t)
	dir, err := os.MkdirTemp("/opt", "unmappable")
	must.NoError(t, err)
	t.Cleanup(func() { must.NoError(t, os.RemoveAll(dir)) })
	must.NoError(t, os.Mkdir(dir+"/sub", 0o700))
	must.NoError(t, os.WriteFile(dir+"/sub/token", []byte("secret\n"), 0o600))
	must.NoError(t, os.Symlink("/etc/passwd", dir+"/link"))

	spec := newMachine(t, m, "cat /x/sub/token && stat -c %u:%g /x /x/sub/token && touch /x/mine")
	spec.Binds = []machine.Bind{{Source: dir, Destination: "/x"}}
	_, err = start(t, m, spec)
	must.ErrorContains(t, err, "bind "+dir+" to /x: map owners for a user namespace")
	must.ErrorContains(t, err, "file system overlay")

	spec.Binds[0].ChownFallback = true
	out := mustStart(t, m, spec)
	must.Eq(t, Exit{}, mustWait(t, m, spec.Machine))
	must.NoError(t, m.Remove(t.Context(), spec.Machine))
	must.Eq(t, "secret\n0:0\n0:0\n", <-out.stdout)
	var stat unix.Stat_t
	must.NoError(t, unix.Stat("/etc/passwd", &stat))
	must.Eq(t, 0, stat.Uid)
}

// TestHostKilledNspawnLeavesNothing kills nspawn, which then cannot clean up.
func TestHostKilledNspawnLeavesNothing(t *testing.T) {
	m := newManager(t)
	before, mountsBefore := locks(t), mountPoints(t)
	for range 2 { // what is left of the first does not prevent the second start
		spec := newMachine(t, m, "mkdir /www; echo hello >/www/x; exec httpd -f -p 80 -h /www")
		spec.Network = machine.Network{Kind: links.Veth, Ports: []ports.Mapping{{Host: 8099, Container: 80}}}
		var address netip.Addr
		mustStart(t, m, spec, vethStep(m, spec, &address))
		must.StrHasSuffix(t, "hello\n", get(t, netip.AddrPortFrom(address, 80), "/x"))
		must.StrContains(t, forwarded(t), "8099")
		must.NoError(t, m.bus.KillUnit(t.Context(), machine.UnitName(spec.Machine), "main", int(unix.SIGKILL)))
		must.Eq(t, Exit{Code: 137, Signal: 9}, mustWait(t, m, spec.Machine))
		must.NoError(t, m.Remove(t.Context(), spec.Machine))
		must.Eq(t, before, locks(t))
		must.Eq(t, mountsBefore, mountPoints(t))
		must.StrNotContains(t, forwarded(t), "8099")
	}
}

func mountPoints(t *testing.T) (points []string) {
	table, err := os.ReadFile("/proc/1/mountinfo")
	must.NoError(t, err)
	for line := range strings.Lines(string(table)) {
		points = append(points, strings.Fields(line)[4])
	}
	slices.Sort(points)
	return points
}

// forwarded returns the forwarded ports of the host.
func forwarded(t *testing.T) string {
	t.Helper()
	out, err := exec.Command("nft", "list", "table", "inet", ports.TableName).CombinedOutput()
	must.NoError(t, err, must.Sprint(string(out)))
	return string(out)
}

func locks(t *testing.T) []string {
	files, err := filepath.Glob("/run/systemd/nspawn/locks/*")
	must.NoError(t, err)
	return files
}
