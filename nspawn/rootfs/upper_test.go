package rootfs

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"

	"nomad-driver-nspawn/e2e/host/hosttest"
	"nomad-driver-nspawn/nspawn/mounts"
	"nomad-driver-nspawn/nspawn/tree"
)

// withUpper sets a directory, 0750 of 5:6, that takes the changes.
func withUpper(t *testing.T, name string) Overlay {
	t.Helper()
	o := newOverlay(t, base1)
	o.RW, o.Upper, o.Work = "", filepath.Join(filepath.Dir(o.RW), name), ".work"
	must.NoError(t, os.Mkdir(o.Upper, 0o750))
	must.NoError(t, os.Chown(o.Upper, 5, 6))
	must.NoError(t, os.Chmod(o.Upper, 0o750))
	return o
}

func TestUpper(t *testing.T) {
	for _, name := range []string{"upper", "a,b=c:d", `a\b "c"`, strings.Repeat("x", 255)} {
		t.Run(name, func(t *testing.T) {
			o := withUpper(t, name)
			for range 2 { // the second time, the work directory exists already
				must.NoError(t, o.Mount())
				must.Eq(t, hosttest.Owned(base1+5, base1+6, 0o750), hosttest.Owner(t, o.Target))
				hosttest.Write(t, o.Target+"/etc/mine", "mine", 0o600, int(base1)+7, int(base1)+8)
				must.NoError(t, mounts.Unmount(o.Target))
				must.Eq(t, "7:8 0600", hosttest.Owner(t, o.Upper+"/etc/mine"))
				must.FileNotExists(t, o.Lower[0]+"/etc/mine")
			}
			must.NoError(t, tree.Remove(filepath.Join(filepath.Dir(o.Upper), o.Work)))
			beside, err := os.ReadDir(filepath.Dir(o.Upper))
			must.NoError(t, err)
			must.SliceLen(t, 3, beside) // lower, merged and upper itself
		})
	}
}

func TestReadOnlyOverlay(t *testing.T) {
	o := newOverlay(t, base1)
	top := filepath.Join(filepath.Dir(o.RW), "top")
	hosttest.Write(t, top+"/etc/shadow", "of the top", 0o600, 0, 0)
	o.RW, o.Lower = "", []string{top, o.Lower[0]}
	must.NoError(t, o.Mount())
	must.FileContains(t, o.Target+"/etc/shadow", "of the top")
	must.Eq(t, hosttest.Owned(base1+33, base1+33, 0o755), hosttest.Owner(t, o.Target+"/var/www"))
	must.ErrorIs(t, os.WriteFile(o.Target+"/x", nil, 0o600), unix.EROFS)
}

// TestLayerOfRoot checks that a layer in the machine's root, whose files have the
// machine's owners already, is not shifted again, and that other layers are shifted.
func TestLayerOfRoot(t *testing.T) {
	root := newOverlay(t, base1)
	must.NoError(t, root.Mount())
	must.NoError(t, os.Mkdir(root.Target+"/etc/by-nspawn", 0o755))
	must.NoError(t, os.WriteFile(root.Target+"/etc/shadow", []byte("changed"), 0))

	o := newOverlay(t, base1)
	o.Root, o.Lower = root.Target, []string{root.Target + "/etc", o.Lower[0]}
	must.NoError(t, o.Mount())
	must.Eq(t, hosttest.Owned(base1, base1, 0o755), hosttest.Owner(t, o.Target))
	must.Eq(t, hosttest.Owned(base1, base1+42, 0o640), hosttest.Owner(t, o.Target+"/shadow"))
	must.Eq(t, hosttest.Owned(base1+33, base1+33, 0o755), hosttest.Owner(t, o.Target+"/var/www"))
	must.FileContains(t, o.Target+"/shadow", "changed")
	must.NoError(t, os.WriteFile(o.Target+"/shadow", []byte("again"), 0))
	must.Eq(t, "0:42 0640", hosttest.Owner(t, o.RW+"/upper/shadow"))
	must.FileContains(t, root.Target+"/etc/shadow", "changed")
	must.NoError(t, mounts.Unmount(o.Target))

	// Files of host root in the root belong to the machine's root in the upper layer.
	o.RW, o.Lower = o.RW+"2", []string{root.Target + "/etc/by-nspawn"}
	must.NoError(t, o.Mount())
	must.Eq(t, hosttest.Owned(base1, base1, 0o755), hosttest.Owner(t, o.Target))
}

func TestUpperErrorsLeaveNothing(t *testing.T) {
	for name, c := range map[string]struct {
		spoil func(t *testing.T, o *Overlay)
		want  string
	}{
		"missing":     {func(_ *testing.T, o *Overlay) { o.Upper += "-not" }, "no such file"},
		"relative":    {func(_ *testing.T, o *Overlay) { o.Upper = "upper" }, `"upper" is not absolute`},
		"a link":      {func(t *testing.T, o *Overlay) { o.Upper = linkTo(t, o.Upper) }, "too many levels of symbolic links"},
		"below link":  {func(t *testing.T, o *Overlay) { o.Upper = linkTo(t, filepath.Dir(o.Upper)) + "/upper" }, "too many levels of symbolic links"},
		"work a link": {func(t *testing.T, o *Overlay) { o.Work = filepath.Base(linkBeside(t, o.Upper)) }, "too many levels of symbolic links"},
		"mount point": {func(t *testing.T, o *Overlay) { o.Upper = mountedOverlay(t) }, "use a directory in it"},
		"is a layer":  {func(_ *testing.T, o *Overlay) { o.Lower = append(o.Lower, o.Upper) }, "a layer is, or lies in, another"},
		"below layer": {func(_ *testing.T, o *Overlay) { o.Lower = append(o.Lower, filepath.Dir(o.Upper)) }, "a layer is, or lies in, another"},
		"one layer":   {func(_ *testing.T, o *Overlay) { o.Upper = "" }, "mount overlay of 1 layers"},
	} {
		t.Run(name, func(t *testing.T) {
			o := withUpper(t, "upper")
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

func linkBeside(t *testing.T, dir string) string {
	link := dir + "-link"
	must.NoError(t, os.Symlink(dir, link))
	return link
}
