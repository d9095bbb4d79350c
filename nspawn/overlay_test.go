package nspawn

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"

	"nomad-driver-nspawn/e2e/host/hosttest"
	"nomad-driver-nspawn/nspawn/dirs"
	"nomad-driver-nspawn/nspawn/machine"
	"nomad-driver-nspawn/nspawn/parts"
)

// newLayers creates directories with files that contain where they are from: base/low,
// base/both and top/both, owned by 7:7, and an empty upper.
func newLayers(t *testing.T) (dir string) {
	hosttest.Require(t)
	dir, err := os.MkdirTemp("/var/lib/machines", "layers") // not on an overlay
	must.NoError(t, err)
	t.Cleanup(func() { must.NoError(t, os.RemoveAll(dir)) })
	for _, layer := range []string{"base", "top", "upper"} {
		must.NoError(t, os.Mkdir(filepath.Join(dir, layer), 0o755))
	}
	for _, file := range []string{"base/low", "base/both", "top/both"} {
		path := filepath.Join(dir, file)
		must.NoError(t, os.WriteFile(path, []byte(file+"\n"), 0o644))
		must.NoError(t, os.Chown(path, 7, 7))
	}
	return dir
}

// TestHostOverlay gives each kind of root overlays of every kind: layers of the host with
// an upper layer that is kept, with one that is discarded, read-only, and over the image's
// /etc.
func TestHostOverlay(t *testing.T) {
	m := newManager(t)
	const read = "cat low both && stat -c %u:%g . low both"
	const change = "echo mine >mine && rm low && ! ls low"
	const seen = "base/low\ntop/both\n0:0\n7:7\n7:7\n"
	for name, c := range map[string]struct {
		root        machine.Root
		destination string // of the first overlay
	}{
		"copy-on-write":          {machine.Root{UserNamespace: true}, "/new/dir"},
		"read-only":              {machine.Root{UserNamespace: true, ReadOnly: true}, "/new/dir"},
		"without user namespace": {machine.Root{}, "/new/dir"},
		"image in place":         {machine.Root{UserNamespace: true, InPlace: true, ReadOnly: true}, "/home"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := newLayers(t)
			lower := []machine.Layer{{Path: dir + "/base"}, {Path: dir + "/top"}}
			spec := newMachine(t, m, "set -e; cd "+c.destination+"; "+read+"; "+change+"; cd /var; "+read+"; "+change+
				"; cd /root; "+read+"; ! touch x; stat -c %u:%g /etc/passwd; cat /etc/low; echo mine >/etc/passwd")
			c.root.Image = spec.Root.Image
			spec.Root = c.root
			spec.Overlays = []machine.Overlay{
				{Lower: lower, Upper: dir + "/upper", Destination: c.destination},
				{Lower: lower, Destination: "/var"},
				{Lower: lower, ReadOnly: true, Destination: "/root"},
				{Lower: []machine.Layer{lower[0], {Path: "/../etc", InRoot: true}}, Destination: "/etc"},
			}
			out := mustStart(t, m, spec)
			exit := mustWait(t, m, spec.Machine)
			must.NoError(t, m.Remove(t.Context(), spec.Machine))
			must.Eq(t, seen+seen+seen+"0:0\nbase/low\n", <-out.stdout)
			must.Eq(t, Exit{}, exit, must.Sprint(<-out.stderr))

			must.Eq(t, []string{"base", "top", "upper"}, namesIn(t, dir)) // and no work directory
			must.Eq(t, []string{"both", "low"}, namesIn(t, dir+"/base"))
			must.Eq(t, []string{"low", "mine"}, namesIn(t, dir+"/upper")) // one is a whiteout
			must.FileContains(t, dir+"/upper/mine", "mine\n")
			var stat unix.Stat_t
			must.NoError(t, unix.Stat(dir+"/upper/mine", &stat))
			must.Eq(t, 0, stat.Uid)
		})
	}
}

func namesIn(t *testing.T, dir string) (names []string) {
	entries, err := os.ReadDir(dir)
	must.NoError(t, err)
	for _, entry := range entries {
		names = append(names, entry.Name())
	}
	return names
}

// TestHostOverlayUpperIsClaimed checks that an upper layer has one machine, even if that
// machine was killed, or is what an interrupted start left.
func TestHostOverlayUpperIsClaimed(t *testing.T) {
	m := newManager(t)
	dir := newLayers(t)
	spec := func(script string) machine.Spec {
		spec := newMachine(t, m, script)
		spec.Overlays = []machine.Overlay{{Lower: []machine.Layer{{Path: dir + "/base"}}, Upper: dir + "/upper", Destination: "/x"}}
		return spec
	}
	refused := func(spec machine.Spec, holder string) {
		_, err := start(t, m, spec)
		var busy *parts.BusyError
		must.True(t, errors.As(err, &busy), must.Sprint(err))
		must.Eq(t, holder, busy.Holder)
	}
	first, second := spec("while :; do sleep 1000 & wait $!; done"), spec("cat /x/low")
	mustStart(t, m, first)
	refused(second, first.Machine)
	inPlace := newMachine(t, m, "true")
	inPlace.Root.Image, inPlace.Root.InPlace = dir, true
	refused(inPlace, first.Machine)

	must.NoError(t, m.bus.KillUnit(t.Context(), machine.UnitName(first.Machine), "main", int(unix.SIGKILL)))
	mustWait(t, m, first.Machine)
	must.NoError(t, m.Remove(t.Context(), first.Machine))
	must.Eq(t, []string{"base", "top", "upper"}, namesIn(t, dir))

	mustPrepare(t, m, first) // and the plugin is killed
	refused(second, first.Machine)
	must.NoError(t, m.RemoveDangling(t.Context(), recordOf(t, m, first.Machine)))
	must.Eq(t, []string{"base", "top", "upper"}, namesIn(t, dir))

	out := mustStart(t, m, second)
	must.Eq(t, Exit{}, mustWait(t, m, second.Machine))
	must.NoError(t, m.Remove(t.Context(), second.Machine))
	must.Eq(t, "base/low\n", <-out.stdout)
}

// TestHostOverlayAfterReboot checks that after a reboot nothing is mounted and no claim is
// left.
func TestHostOverlayAfterReboot(t *testing.T) {
	m := newManager(t)
	dir := newLayers(t)
	before := newMachine(t, m, "true")
	before.Overlays = []machine.Overlay{{Lower: []machine.Layer{{Path: dir + "/base"}}, Upper: dir + "/upper", Destination: "/x"}}
	work := filepath.Join(dir, dirs.OverlayWork(before.Machine, "0"))
	must.NoError(t, os.MkdirAll(filepath.Dir(m.dirs.OverlayRW(before.Machine, "0")), 0o700))
	must.NoError(t, os.Symlink(dir+"/upper", m.dirs.OverlayRW(before.Machine, "0")))
	must.NoError(t, os.MkdirAll(work+"/work", 0o700))

	after := newMachine(t, m, "cat /x/low && echo mine >/x/mine")
	after.Overlays = before.Overlays
	out := mustStart(t, m, after)
	must.NoError(t, m.RemoveDangling(t.Context(), recordOf(t, m, before.Machine)))
	must.Eq(t, Exit{}, mustWait(t, m, after.Machine))
	must.NoError(t, m.Remove(t.Context(), after.Machine))
	must.Eq(t, "base/low\n", <-out.stdout)
	must.Eq(t, []string{"base", "top", "upper"}, namesIn(t, dir))
	must.Eq(t, []string{"mine"}, namesIn(t, dir+"/upper"))
}

func TestHostOverlayErrorLeavesNothing(t *testing.T) {
	m := newManager(t)
	for name, c := range map[string]struct {
		spoil func(*machine.Overlay)
		want  string
	}{
		"missing in image": {func(o *machine.Overlay) { o.Lower = []machine.Layer{{Path: "/nope", InRoot: true}} }, "find /nope in the image: no such file"},
		"lower is upper":   {func(o *machine.Overlay) { o.Lower[0].Path = o.Upper }, "a layer is, or lies in, another"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := newLayers(t)
			spec := newMachine(t, m, "true")
			spec.Overlays = []machine.Overlay{{Lower: []machine.Layer{{Path: dir + "/base"}}, Upper: dir + "/upper", Destination: "/x"}}
			c.spoil(&spec.Overlays[0])
			_, err := start(t, m, spec)
			must.ErrorContains(t, err, "overlay /x: ")
			must.ErrorContains(t, err, c.want)
			must.Eq(t, nil, traces(t, m, spec.Machine))
			must.Eq(t, []string{"base", "top", "upper"}, namesIn(t, dir))
		})
	}
}
