package rootfs

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"

	"nomad-driver-nspawn/e2e/host/hosttest"
	"nomad-driver-nspawn/nspawn/idmap"
	"nomad-driver-nspawn/nspawn/mounts"
)

const (
	base1 uint32 = 0x00100000
	base2 uint32 = 0x6FFF0000
)

func TestMountShiftsOwners(t *testing.T) {
	for _, base := range []uint32{0, base1, base2} {
		t.Run(fmt.Sprint(base), func(t *testing.T) {
			o := newOverlay(t, base)
			must.NoError(t, o.Mount())
			must.Eq(t, hosttest.Owned(base, base, 0o751), hosttest.Owner(t, o.Target))
			must.Eq(t, hosttest.Owned(base, base+42, 0o640), hosttest.Owner(t, o.Target+"/etc/shadow"))
			must.Eq(t, hosttest.Owned(base+33, base+33, 0o755), hosttest.Owner(t, o.Target+"/var/www"))
			must.Eq(t, "0:0 0700", hosttest.Owner(t, o.RW))
		})
	}
}

func TestWritesOfHostRoot(t *testing.T) {
	o := newOverlay(t, base1)
	must.NoError(t, o.Mount())

	// overlayfs and systemd-nspawn do the same: create as host root, then change the
	// owner to the machine.
	must.NoError(t, os.WriteFile(o.Target+"/new", []byte("x"), 0o600))
	must.Eq(t, "0:0 0600", hosttest.Owner(t, o.Target+"/new"))
	must.Eq(t, "65536:65536 0600", hosttest.Owner(t, o.RW+"/upper/new"))
	must.NoError(t, os.Chown(o.Target+"/new", int(base1)+7, int(base1)+8))
	must.Eq(t, "7:8 0600", hosttest.Owner(t, o.RW+"/upper/new"))

	// Changing a lower file copies it up with its owner. Removing one leaves a whiteout;
	// the layer does not change.
	must.NoError(t, os.WriteFile(o.Target+"/etc/shadow", []byte("changed"), 0))
	must.Eq(t, "0:42 0640", hosttest.Owner(t, o.RW+"/upper/etc/shadow"))
	must.NoError(t, os.Remove(o.Target+"/var/www"))
	must.FileContains(t, o.Lower[0]+"/etc/shadow", "secret")
	must.Eq(t, "33:33 0755", hosttest.Owner(t, o.Lower[0]+"/var/www"))
	must.ErrorIs(t, os.Chown(o.Target+"/new", 12345, 0), unix.EOVERFLOW) // this UID is not in the machine's range
}

func TestRestartWithAnotherBase(t *testing.T) {
	o := newOverlay(t, base1)
	must.NoError(t, o.Mount())
	hosttest.Write(t, o.Target+"/data/file", "kept", 0o604, int(base1)+1000, int(base1)+1001)
	must.NoError(t, os.Chmod(o.Target, 0o711))
	must.NoError(t, mounts.Unmount(o.Target))

	o.UIDBase = base2
	must.NoError(t, o.Mount())
	must.FileContains(t, o.Target+"/data/file", "kept")
	must.Eq(t, hosttest.Owned(base2+1000, base2+1001, 0o604), hosttest.Owner(t, o.Target+"/data/file"))
	must.Eq(t, hosttest.Owned(base2, base2, 0o711), hosttest.Owner(t, o.Target))
}

// TestMachineWrites changes the root as the machine's own root, in its user namespace.
func TestMachineWrites(t *testing.T) {
	o := newOverlay(t, base1)
	busybox, err := os.ReadFile("/bin/busybox")
	must.NoError(t, err, must.Sprint("install busybox-static"))
	hosttest.Write(t, o.Lower[0]+"/bin/busybox", string(busybox), 0o755, 0, 0)
	must.NoError(t, o.Mount())

	ids := []syscall.SysProcIDMap{{HostID: int(base1), Size: idmap.RangeSize}}
	sh := exec.Command("/bin/busybox", "sh", "-ec", `
		/bin/busybox --install -s /bin
		PATH=/bin
		cat /etc/shadow
		echo more >>/etc/shadow
		echo mine >/mine; chown 33:34 /mine; chmod 4755 /mine
		rmdir /var/www
		mkdir -p /a/b; mv /a /c
		stat -c %u:%g / /c/b /mine`)
	sh.Dir = "/"
	sh.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWUSER, UidMappings: ids, GidMappings: ids, GidMappingsEnableSetgroups: true,
		Chroot: o.Target, Credential: &syscall.Credential{},
	}
	out, err := sh.CombinedOutput()
	must.NoError(t, err, must.Sprint(string(out)))
	must.Eq(t, "secret0:0\n0:0\n33:34\n", string(out))
	must.Eq(t, "33:34 4755", hosttest.Owner(t, o.RW+"/upper/mine"))
	must.Eq(t, "0:42 0640", hosttest.Owner(t, o.RW+"/upper/etc/shadow"))
	must.Eq(t, "0:0 0755", hosttest.Owner(t, o.RW+"/upper/c/b"))
	must.FileContains(t, o.Lower[0]+"/etc/shadow", "secret")
}

func TestAwkwardNames(t *testing.T) {
	for _, name := range []string{
		"a:b", "a,b=c", "a b", `a\b`, `a\:b`, `"quoted"`, "line\nfeed", "ünï→", "-o", "{}$(x)", strings.Repeat("x", 255),
	} {
		t.Run(name, func(t *testing.T) {
			o := newOverlay(t, base1)
			top := filepath.Join(filepath.Dir(o.RW), name)
			must.NoError(t, os.Mkdir(top, 0o755))
			must.NoError(t, os.Rename(o.Lower[0], top+"/lower"))
			o = Overlay{Lower: []string{top + "/lower"}, RW: top + "/rw", Target: top + "/merged", UIDBase: base1}
			must.NoError(t, o.Mount())
			must.FileExists(t, o.Target+"/etc/shadow")
			must.NoError(t, os.WriteFile(o.Target+"/x", nil, 0o600))
			must.FileExists(t, o.RW+"/upper/x")
			must.NoError(t, mounts.Unmount(o.Target))
			must.FileNotExists(t, o.Target+"/x")
		})
	}
}

func TestManyLayers(t *testing.T) {
	o := newOverlay(t, base1)
	for i := range 499 { // with the existing one, this is the kernel's maximum
		layer := fmt.Sprintf("%s/a-layer-with-quite-a-long-name-as-a-digest-would-be-%03d", filepath.Dir(o.RW), i)
		hosttest.Write(t, fmt.Sprintf("%s/own-%03d", layer, i), "", 0o644, i, i)
		hosttest.Write(t, layer+"/same", fmt.Sprintf("layer %d", i), 0o644, 0, 0)
		o.Lower = append(o.Lower, layer)
	}
	must.NoError(t, o.Mount())
	must.FileContains(t, o.Target+"/same", "layer 0") // the topmost comes first
	must.Eq(t, hosttest.Owned(base1+498, base1+498, 0o644), hosttest.Owner(t, o.Target+"/own-498"))
}

func TestMountAddsExactlyOneMount(t *testing.T) {
	o := newOverlay(t, base1)
	before := hosttest.Mounts(t)
	must.NoError(t, o.Mount())
	after := hosttest.Mounts(t)
	must.SliceLen(t, len(before)+1, after)
	added := slices.IndexFunc(after, func(m string) bool { return strings.Contains(m, " "+o.Target+" ") })
	must.StrContains(t, after[added], "nodev")
	must.StrContains(t, after[added], " - overlay ")
	must.NoError(t, mounts.Unmount(o.Target))
	must.Eq(t, before, hosttest.Mounts(t))
}

func TestMountFollowsPropagation(t *testing.T) {
	o := newOverlay(t, base1)
	here, there := filepath.Join(filepath.Dir(o.RW), "here"), filepath.Join(filepath.Dir(o.RW), "there")
	for _, dir := range []string{here, there} {
		must.NoError(t, os.Mkdir(dir, 0o755))
	}
	must.NoError(t, unix.Mount(here, here, "", unix.MS_BIND, ""))
	t.Cleanup(func() { must.NoError(t, unix.Unmount(here, unix.MNT_DETACH)) })
	must.NoError(t, unix.Mount("", here, "", unix.MS_SHARED, ""))
	must.NoError(t, unix.Mount(here, there, "", unix.MS_BIND, ""))
	t.Cleanup(func() { must.NoError(t, unix.Unmount(there, unix.MNT_DETACH)) })

	o.Target = here + "/merged"
	must.NoError(t, o.Mount())
	must.FileExists(t, there+"/merged/etc/shadow")
	must.NoError(t, mounts.Unmount(o.Target))
	must.FileNotExists(t, there+"/merged/etc/shadow")
}

func TestMountErrorsLeaveNothing(t *testing.T) {
	for name, c := range map[string]struct {
		spoil func(t *testing.T, o *Overlay)
		want  string
	}{
		"no layer":        {func(_ *testing.T, o *Overlay) { o.Lower = nil }, "no lower layer"},
		"relative":        {func(_ *testing.T, o *Overlay) { o.RW = "rw" }, `"rw" is not absolute`},
		"odd base":        {func(_ *testing.T, o *Overlay) { o.UIDBase = 1000 }, "not a multiple"},
		"missing layer":   {func(_ *testing.T, o *Overlay) { o.Lower = append(o.Lower, "/missing") }, "open layer /missing: no such file"},
		"no directory":    {func(_ *testing.T, o *Overlay) { o.Lower = append(o.Lower, "/etc/passwd") }, "open layer /etc/passwd: not a directory"},
		"layer on proc":   {func(_ *testing.T, o *Overlay) { o.Lower = append(o.Lower, "/proc/1") }, "ID-map mounts of file system proc"},
		"layer a link":    {func(t *testing.T, o *Overlay) { o.Lower = []string{linkTo(t, o.Lower[0])} }, "too many levels of symbolic links"},
		"rw on overlay":   {func(t *testing.T, o *Overlay) { o.RW = mountedOverlay(t) + "/rw" }, "ID-map mounts of file system overlay"},
		"same, no users":  {func(t *testing.T, o *Overlay) { o.RW, o.UIDBase = mountedOverlay(t)+"/rw", 0 }, "mount overlay of 1 layers"},
		"target in use":   {func(t *testing.T, o *Overlay) { o.Target = mountedOverlay(t) }, "mounted there already"},
		"target a file":   {func(_ *testing.T, o *Overlay) { o.Target = o.Lower[0] + "/etc/shadow" }, "not a directory"},
		"too many":        {func(_ *testing.T, o *Overlay) { o.Lower = slices.Repeat(o.Lower, 501) }, "501 lower layers"},
		"work in the way": {func(t *testing.T, o *Overlay) { hosttest.Write(t, o.RW+"/work", "", 0o600, 0, 0) }, "not a directory"},
	} {
		t.Run(name, func(t *testing.T) {
			o := newOverlay(t, base1)
			good := o.Target
			c.spoil(t, &o)
			before := hosttest.Mounts(t)
			err := o.Mount()
			must.ErrorContains(t, err, c.want)
			t.Log(err)
			must.Eq(t, before, hosttest.Mounts(t))
			must.NoError(t, mounts.Unmount(good))
		})
	}
}

// mountedOverlay mounts another overlay and returns its target.
func mountedOverlay(t *testing.T) string {
	t.Helper()
	o := newOverlay(t, 0)
	must.NoError(t, o.Mount())
	return o.Target
}

func TestUnmount(t *testing.T) {
	o := newOverlay(t, base1)
	must.NoError(t, mounts.Unmount(o.Target)) // it does not exist
	must.NoError(t, o.Mount())
	must.ErrorIs(t, o.Mount(), unix.EBUSY)
	held, err := os.Open(o.Target + "/etc/shadow")
	must.NoError(t, err)
	defer held.Close()
	must.NoError(t, mounts.Unmount(o.Target)) // it is busy
	must.FileNotExists(t, o.Target+"/etc/shadow")
	must.NoError(t, mounts.Unmount(o.Target)) // it is not mounted
}

// TestHelpersAreGone looks for the private mounts in the mount table of every thread, and
// checks that the main thread was not the one that ended.
func TestHelpersAreGone(t *testing.T) {
	o := newOverlay(t, base1)
	own, err := os.Readlink("/proc/self/ns/mnt")
	must.NoError(t, err)
	for range 100 {
		must.NoError(t, o.Mount())
		tables, err := filepath.Glob("/proc/self/task/*/mountinfo")
		must.NoError(t, err)
		for _, table := range tables {
			text, _ := os.ReadFile(table) // The thread may have ended.
			must.StrNotContains(t, string(text), o.Target+" rw,relatime - tmpfs")
		}
		must.NoError(t, mounts.Unmount(o.Target))
		now, err := os.Readlink("/proc/self/ns/mnt")
		must.NoError(t, err)
		must.Eq(t, own, now)
	}
}

func TestMountsAtOnce(t *testing.T) {
	var all sync.WaitGroup
	for range 16 {
		o := newOverlay(t, base1)
		all.Go(func() {
			for range 5 {
				if err := o.Mount(); err != nil {
					t.Error(err)
				}
				if err := mounts.Unmount(o.Target); err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
}

// TestMountTimeIsConstant compares an image of a few files with one of 20,000.
func TestMountTimeIsConstant(t *testing.T) {
	small, big := newOverlay(t, base1), newOverlay(t, base1)
	for i := range 20_000 {
		path := fmt.Sprintf("%s/%d/%d", big.Lower[0], i/500, i)
		if i%500 == 0 {
			must.NoError(t, os.Mkdir(filepath.Dir(path), 0o755))
		}
		must.NoError(t, os.WriteFile(path, nil, 0o644))
	}
	const runs = 15
	times := map[string][]time.Duration{}
	for range runs { // alternating, so that both see the same load of the host
		for _, o := range []Overlay{small, big} {
			begin := time.Now()
			must.NoError(t, o.Mount())
			times[o.Target] = append(times[o.Target], time.Since(begin))
			must.NoError(t, mounts.Unmount(o.Target))
		}
	}
	median := func(o Overlay) time.Duration {
		slices.Sort(times[o.Target])
		return times[o.Target][runs/2]
	}
	fast, slow := median(small), median(big)
	t.Logf("small image %s, 20,000 files %s", fast, slow)
	must.Less(t, 3*fast+5*time.Millisecond, slow)
}

func BenchmarkMount(b *testing.B) {
	top := b.TempDir()
	o := Overlay{Lower: []string{top + "/lower"}, RW: top + "/rw", Target: top + "/merged", UIDBase: base1}
	must.NoError(b, os.Mkdir(o.Lower[0], 0o755))
	for b.Loop() {
		must.NoError(b, o.Mount())
		b.StopTimer()
		must.NoError(b, mounts.Unmount(o.Target))
		b.StartTimer()
	}
}

func linkTo(t *testing.T, dir string) string {
	link := filepath.Join(t.TempDir(), "link")
	must.NoError(t, os.Symlink(dir, link))
	return link
}

func TestProbe(t *testing.T) {
	hosttest.RequireRoot(t)
	dir := t.TempDir()
	before := hosttest.Mounts(t)
	must.NoError(t, Probe(dir, Overlay.Mount))
	left, err := os.ReadDir(dir)
	must.NoError(t, err)
	must.SliceEmpty(t, left)
	must.Eq(t, before, hosttest.Mounts(t))

	must.NoError(t, Probe(dir+"/missing", Overlay.Mount)) // a client that has not run any task yet

	onOverlay := mountedOverlay(t)
	err = Probe(onOverlay, Overlay.Mount)
	must.ErrorContains(t, err, "file system overlay")
	t.Log(err)
	probes, err := filepath.Glob(onOverlay + "/.probe-*")
	must.NoError(t, err)
	must.SliceEmpty(t, probes)
}
