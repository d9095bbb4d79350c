package layer

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/shoenig/test/must"

	"nomad-driver-nspawn/nspawn/mounts"
	"nomad-driver-nspawn/nspawn/rootfs"
)

// merge returns the merged tree of layers, the topmost last, as a machine gets it.
func merge(t *testing.T, layers ...[]entry) string {
	t.Helper()
	top := t.TempDir()
	o := rootfs.Overlay{RW: filepath.Join(top, "rw"), Target: filepath.Join(top, "merged"), UIDBase: 1 << 20}
	for _, entries := range layers {
		o.Lower = append([]string{mustUnpack(t, Options{Whiteouts: true}, entries...)}, o.Lower...)
	}
	must.NoError(t, o.Mount())
	t.Cleanup(func() { must.NoError(t, mounts.Unmount(o.Target)) })
	return o.Target
}

func TestWhiteoutsInOverlay(t *testing.T) {
	below := []entry{dir("a"), file("a/1", "below"), file("a/2", "below"), dir("a/sub"), file("a/sub/3", "below"), file("f", "below")}
	for name, c := range map[string]struct {
		above []entry
		want  []string
	}{
		"nothing":           {nil, []string{"a/", "a/1 = below", "a/2 = below", "a/sub/", "a/sub/3 = below", "f = below"}},
		"file":              {[]entry{file("a/.wh.1", "")}, []string{"a/", "a/2 = below", "a/sub/", "a/sub/3 = below", "f = below"}},
		"directory":         {[]entry{file(".wh.a", "")}, []string{"f = below"}},
		"of any kind":       {[]entry{link(".wh.a", "nothing"), dir(".wh.f")}, []string{}},
		"through a link":    {[]entry{symlink("l", "/a"), dir("a"), file("l/.wh.sub", ""), file("l/.wh.1", "")}, []string{"a/", "a/2 = below", "f = below", "l -> /a"}},
		"twice":             {[]entry{file(".wh.a", ""), file(".wh.a", "")}, []string{"f = below"}},
		"opaque":            {[]entry{dir("a"), file("a/.wh..wh..opq", ""), file("a/4", "above")}, []string{"a/", "a/4 = above", "f = below"}},
		"opaque comes last": {[]entry{file("a/4", "above"), file("a/sub/5", "above"), file("a/.wh..wh..opq", "")}, []string{"a/", "a/4 = above", "a/sub/", "a/sub/5 = above", "f = below"}},
		"opaque only":       {[]entry{file("a/.wh..wh..opq", "")}, []string{"a/", "f = below"}},
		"opaque deeper":     {[]entry{file("a/sub/.wh..wh..opq", "")}, []string{"a/", "a/1 = below", "a/2 = below", "a/sub/", "f = below"}},

		// The layer's own entries win, in either order.
		"then file":        {[]entry{file(".wh.f", ""), file("f", "above"), file(".wh.a", "")}, []string{"f = above"}},
		"file then":        {[]entry{file("f", "above"), file(".wh.f", ""), file(".wh.a", "")}, []string{"f = above"}},
		"then directory":   {[]entry{file(".wh.a", ""), dir("a"), file("a/4", "above")}, []string{"a/", "a/4 = above", "f = below"}},
		"then deep file":   {[]entry{file(".wh.a", ""), file("a/sub/4", "above")}, []string{"a/", "a/sub/", "a/sub/4 = above", "f = below"}},
		"directory then":   {[]entry{dir("a"), file("a/4", "above"), file(".wh.a", "")}, []string{"a/", "a/4 = above", "f = below"}},
		"then link":        {[]entry{file(".wh.a", ""), symlink("a", "f")}, []string{"a -> f", "f = below"}},
		"then hard link":   {[]entry{file(".wh.f", ""), file("x", "above"), link("f", "x"), file(".wh.a", "")}, []string{"f = above", "x = above"}},
		"metadata of AUFS": {[]entry{file(".wh..wh.aufs", ""), dir(".wh..wh.plnk"), file(".wh.a", "")}, []string{"f = below"}},
		"file to be a dir": {[]entry{file(".wh.f", ""), file("f/4", "above"), file(".wh.a", "")}, []string{"f/", "f/4 = above"}},
		"longest name":     {[]entry{file("a/.wh."+strings.Repeat("x", 255), ""), file(".wh.f", "")}, []string{"a/", "a/1 = below", "a/2 = below", "a/sub/", "a/sub/3 = below"}},
	} {
		t.Run(name, func(t *testing.T) {
			must.Eq(t, c.want, listing(t, merge(t, below, c.above)))
		})
	}
}

func TestLayersShowOwnersOfTheTopmost(t *testing.T) {
	root := merge(t,
		[]entry{dir("a").with(owner(1, 1, 0o700)), dir("b").with(owner(1, 1, 0o700)), file("a/su", "").with(owner(1, 1, 0o4755))},
		[]entry{dir("a").with(owner(2, 2, 0o711)), file("a/.wh.none", "")},
	)
	must.Eq(t, "1048578:1048578 040711", mode(t, root+"/a"))
	must.Eq(t, "1048577:1048577 040700", mode(t, root+"/b"))
	must.Eq(t, "1048577:1048577 104755", mode(t, root+"/a/su"))
}

// TestOpaqueRoot checks the behavior that the documentation of Whiteouts describes.
func TestOpaqueRoot(t *testing.T) {
	opaque := []entry{file(".wh..wh..opq", ""), file("b", "above")}
	must.Eq(t, []string{"a = below", "b = above"}, listing(t, merge(t, []entry{file("a", "below")}, opaque)))
	must.Eq(t, `trusted.overlay.opaque="y"`, xattrs(t, mustUnpack(t, Options{Whiteouts: true}, opaque...)))
}

func TestForgedOverlayMetadata(t *testing.T) {
	root := merge(t,
		[]entry{file("a/1", "below"), file("secret", "below")},
		[]entry{
			dir("a").with(xattr("trusted.overlay.opaque", "y")),
			dir("b").with(xattr("trusted.overlay.redirect", "/a")),
			file("c", "").with(xattr("trusted.overlay.redirect", "/secret")),
			file("d", "").with(xattr("trusted.overlay.whiteout", "")),
		},
	)
	must.Eq(t, []string{"a/", "a/1 = below", "b/", "c = ", "d = ", "secret = below"}, listing(t, root))
}
