package layer

import (
	"archive/tar"
	"bytes"
	"context"
	"io"
	"os"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"
)

// pingCapability is the security.capability of a file with cap_net_raw=ep (struct
// vfs_cap_data, revision 2).
const pingCapability = "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"

func TestKindsAndAttributes(t *testing.T) {
	old := unix.Umask(0o077) // this must not have an effect
	defer unix.Umask(old)
	root := mustUnpack(t, Options{},
		dir("./").with(owner(1, 2, 0o750)),
		dir("shared").with(owner(0, 50, 0o2775)),
		file("shared/file", "hello").with(owner(1000, 1001, 0o604)),
		file("shared/su", "x").with(owner(33, 34, 0o6755)),
		file("ping", "x").with(owner(5, 6, 0o755)).with(xattr("security.capability", pingCapability)),
		file("tagged", "").with(xattr("user.tag", "a\x00b")),
		symlink("link", "../any where").with(owner(7, 8, 0o777)),
		node(tar.TypeChar, "null", 1, 3).with(owner(0, 0, 0o666)),
		node(tar.TypeBlock, "disk", 259, 70000),
		node(tar.TypeFifo, "fifo", 0, 0).with(owner(65535, 65535, 0o622)),
		dir("tmp").with(owner(0, 0, 0o1777)),
		link("shared/again", "shared/su"),
	)
	for path, want := range map[string]string{
		"":             "1:2 040750",
		"shared":       "0:50 042775",
		"shared/file":  "1000:1001 100604",
		"shared/su":    "33:34 106755",
		"shared/again": "33:34 106755",
		"ping":         "5:6 100755",
		"link":         "7:8 120777",
		"null":         "0:0 020666",
		"disk":         "0:0 060600",
		"fifo":         "65535:65535 010622",
		"tmp":          "0:0 041777",
	} {
		must.Eq(t, want, mode(t, root+"/"+path), must.Sprint(path))
		at := lstat(t, root+"/"+path)
		must.Eq(t, stamp.UnixNano(), at.Mtim.Nano(), must.Sprint(path))
	}
	must.Eq(t, unix.Mkdev(1, 3), lstat(t, root+"/null").Rdev)
	must.Eq(t, unix.Mkdev(259, 70000), lstat(t, root+"/disk").Rdev)
	must.Eq(t, lstat(t, root+"/shared/su").Ino, lstat(t, root+"/shared/again").Ino)
	must.StrContains(t, xattrs(t, root+"/ping"), "security.capability")
	must.Eq(t, `user.tag="a\x00b"`, xattrs(t, root+"/tagged"))
	must.FileContains(t, root+"/shared/file", "hello")
	target, err := os.Readlink(root + "/link")
	must.NoError(t, err)
	must.Eq(t, "../any where", target)
}

func TestXattrsThatAreDropped(t *testing.T) {
	for _, name := range []string{
		"trusted.overlay.opaque", "trusted.overlay.redirect", "trusted.overlay.metacopy", "trusted.overlay.whiteout", "trusted.any",
		"security.selinux", "security.ima", "system.posix_acl_access",
	} {
		for _, e := range []entry{file("e", "x"), dir("e"), symlink("e", "t")} {
			root := mustUnpack(t, Options{Whiteouts: true}, e.with(xattr(name, "y")))
			must.Eq(t, "", xattrs(t, root+"/e"), must.Sprint(name))
		}
	}
	// Only files and directories can have user.* attributes.
	root := mustUnpack(t, Options{}, symlink("e", "t").with(xattr("user.tag", "y")), node(tar.TypeFifo, "f", 0, 0).with(xattr("user.tag", "y")))
	must.Eq(t, "", xattrs(t, root+"/e")+xattrs(t, root+"/f"))
}

func TestTrees(t *testing.T) {
	for name, c := range map[string]struct {
		entries []entry
		want    []string
	}{
		"empty": {nil, []string{}},
		"names": {
			[]entry{file("/a", "1"), file("./b", "2"), file(".//c/./d", "3"), file("e\\ \n*", "4"), dir("f/")},
			[]string{"a = 1", "b = 2", "c/", "c/d = 3", "e\\ \n* = 4", "f/"},
		},
		"missing parents":    {[]entry{file("a/b/c", "1")}, []string{"a/", "a/b/", "a/b/c = 1"}},
		"through a link":     {[]entry{dir("usr/lib"), symlink("lib", "usr/lib"), file("lib/x", "1")}, []string{"lib -> usr/lib", "usr/", "usr/lib/", "usr/lib/x = 1"}},
		"absolute link":      {[]entry{dir("usr/lib"), symlink("lib", "/usr/lib"), file("lib/x", "1")}, []string{"lib -> /usr/lib", "usr/", "usr/lib/", "usr/lib/x = 1"}},
		"link comes first":   {[]entry{symlink("lib", "usr/lib"), file("lib/y/x", "1")}, []string{"lib -> usr/lib", "usr/", "usr/lib/", "usr/lib/y/", "usr/lib/y/x = 1"}},
		"links to links":     {[]entry{symlink("a", "/b/./c"), symlink("b", "d//e/../f/"), file("a/x", "1")}, []string{"a -> /b/./c", "b -> d//e/../f/", "d/", "d/e/", "d/f/", "d/f/c/", "d/f/c/x = 1"}},
		"up and down":        {[]entry{dir("a/b"), symlink("a/b/l", "../../c"), file("a/b/l/x", "1")}, []string{"a/", "a/b/", "a/b/l -> ../../c", "c/", "c/x = 1"}},
		"file over file":     {[]entry{file("a", "1"), file("a", "22")}, []string{"a = 22"}},
		"file over link":     {[]entry{file("a", "1"), symlink("b", "a"), file("b", "2")}, []string{"a = 1", "b = 2"}},
		"file over hardlink": {[]entry{file("a", "1"), link("b", "a"), file("b", "2")}, []string{"a = 1", "b = 2"}},
		"file over tree":     {[]entry{file("a/b/c", "1"), file("a", "2")}, []string{"a = 2"}},
		"directory over file": {
			[]entry{file("a", "1"), dir("a"), file("a/b", "2")}, []string{"a/", "a/b = 2"},
		},
		"directory over directory": {[]entry{file("a/b", "1"), dir("a"), file("a/c", "2")}, []string{"a/", "a/b = 1", "a/c = 2"}},
		"directory over link":      {[]entry{dir("u"), symlink("a", "u"), dir("a"), file("a/b", "1")}, []string{"a/", "a/b = 1", "u/"}},
		"link over directory":      {[]entry{file("a/b", "1"), dir("u"), symlink("a", "u"), file("a/c", "2")}, []string{"a -> u", "u/", "u/c = 2"}},
		"link over open directory": {[]entry{dir("u"), file("a/b/c", "1"), symlink("a/b", "/u"), file("a/b/c", "2")}, []string{"a/", "a/b -> /u", "u/", "u/c = 2"}},
		"link to its own place":    {[]entry{symlink("l", "."), dir("l/l"), file("l/x", "1")}, []string{"l/", "l/x = 1"}},
		"hard link to a link":      {[]entry{symlink("a", "b"), file("b", "1"), link("c", "a")}, []string{"a -> b", "b = 1", "c -> b"}},
		"hard link through a link": {[]entry{file("u/a", "1"), symlink("l", "/u"), link("c", "l/a")}, []string{"c = 1", "l -> /u", "u/", "u/a = 1"}},
		"hard link to itself":      {[]entry{file("a", "1"), link("a", "./a")}, []string{"a = 1"}},
		"whiteouts as files":       {[]entry{file(".wh.a", "1"), file("b/.wh..wh..opq", "2")}, []string{".wh.a = 1", "b/", "b/.wh..wh..opq = 2"}},
		"comment":                  {[]entry{{Header: tar.Header{Typeflag: tar.TypeXGlobalHeader, PAXRecords: map[string]string{"comment": "c"}}}, file("a", "1")}, []string{"a = 1"}},
	} {
		t.Run(name, func(t *testing.T) {
			root := mustUnpack(t, Options{}, c.entries...)
			must.Eq(t, c.want, listing(t, root))
		})
	}
}

// TestDirectoryTimes creates files in directories after the directories' own entries.
func TestDirectoryTimes(t *testing.T) {
	at := func(year int) func(*tar.Header) {
		return func(h *tar.Header) { h.ModTime = time.Date(year, 1, 2, 3, 4, 5, 6, time.UTC) }
	}
	root := mustUnpack(t, Options{},
		dir(".").with(at(2001)),
		dir("a").with(at(2002)),
		dir("a/b").with(at(2003)),
		dir("gone").with(at(2004)),
		file("a/b/c", "").with(at(2005)),
		file("gone", "").with(at(1931)),
		symlink("l", "a").with(at(2007)),
		dir("l/b").with(at(2008)), // a/b again
		dir("loop/a").with(at(2009)),
		symlink("loop", "loop"),
		dir("was").with(at(2010)),
		symlink("was", "a").with(at(2011)),
	)
	for path, year := range map[string]int{".": 2001, "a": 2002, "a/b": 2008, "a/b/c": 2005, "gone": 1931, "l": 2007, "was": 2011} {
		got := lstat(t, root+"/"+path)
		must.Eq(t, time.Date(year, 1, 2, 3, 4, 5, 6, time.UTC).UnixNano(), got.Mtim.Nano(), must.Sprint(path))
	}
}

// TestMissingDirectoriesAreRoots creates them below a setgid directory.
func TestMissingDirectoriesAreRoots(t *testing.T) {
	old := unix.Umask(0o027)
	defer unix.Umask(old)
	root := mustUnpack(t, Options{}, dir("s").with(owner(5, 6, 0o2700)), file("s/a/b/c", "").with(owner(7, 8, 0o600)))
	must.Eq(t, "0:0 040755", mode(t, root+"/s/a"))
	must.Eq(t, "0:0 040755", mode(t, root+"/s/a/b"))
	must.Eq(t, "7:8 100600", mode(t, root+"/s/a/b/c"))
	must.Eq(t, "0:0 040755", mode(t, root))
}

func TestStatsAndLimits(t *testing.T) {
	entries := []entry{
		dir("a"), file("a/b", strings.Repeat("x", 1000)), file("c/d/e", strings.Repeat("y", 500)), symlink("l", "a"), link("h", "a/b"),
	}
	const bytes, count = 1500, 7 // c and c/d count as well
	_, stats, err := unpack(t, Options{MaxBytes: bytes, MaxEntries: count}, entries...)
	must.NoError(t, err)
	must.Eq(t, Stats{Bytes: bytes, Entries: count}, stats)

	_, _, err = unpack(t, Options{MaxBytes: bytes - 1}, entries...)
	must.ErrorContains(t, err, `entry "c/d/e": its 500 bytes make the tree larger than the limit of 1499`)
	_, _, err = unpack(t, Options{MaxEntries: count - 1}, entries...)
	must.ErrorContains(t, err, `entry "h": more than 6 entries, which is the limit`)
	_, _, err = unpack(t, Options{MaxEntries: 3}, entries...)
	must.ErrorContains(t, err, `entry "c/d/e": open directory "c/d/": more than 3 entries`)
}

func TestOwnersOutOfRange(t *testing.T) {
	for _, id := range [][2]int{{65536, 0}, {0, 65536}, {1 << 31, 0}, {0, 1 << 32}} {
		_, _, err := unpack(t, Options{}, file("a/b", "").with(owner(id[0], id[1], 0o644)))
		must.ErrorContains(t, err, `entry "a/b": owner`)
	}
}

// TestEveryCutIsSeen cuts a stream at every block, and at many other places.
func TestEveryCutIsSeen(t *testing.T) {
	whole := archive(t, dir("a"), file("a/b", strings.Repeat("x", 600)), file("zeros", strings.Repeat("\x00", 1024)))
	for n := range len(whole) {
		if n%512 > 1 && n%11 != 0 {
			continue
		}
		_, err := Unpack(t.Context(), bytes.NewReader(whole[:n]), t.TempDir(), Options{})
		must.Error(t, err, must.Sprintf("%d of %d bytes", n, len(whole)))
	}
	_, err := Unpack(t.Context(), bytes.NewReader(whole[:len(whole)-2*512]), t.TempDir(), Options{Unmarked: true})
	must.NoError(t, err)
	for _, r := range []io.Reader{
		bytes.NewReader(whole),
		iotest.DataErrReader(bytes.NewReader(whole)),
		iotest.OneByteReader(bytes.NewReader(whole)),
		bytes.NewReader(append(bytes.Clone(whole), make([]byte, 10240)...)), // padding of GNU tar
	} {
		_, err := Unpack(t.Context(), r, t.TempDir(), Options{})
		must.NoError(t, err)
	}
}

// TestReadsToTheEnd expects an error that follows the end of the archive, such as a wrong
// checksum.
func TestReadsToTheEnd(t *testing.T) {
	r := io.MultiReader(bytes.NewReader(archive(t, file("a", ""))), bytes.NewReader(make([]byte, 5000)), iotest.ErrReader(unix.EBADMSG))
	_, err := Unpack(t.Context(), r, t.TempDir(), Options{})
	must.ErrorIs(t, err, unix.EBADMSG)
}

// TestContext ends the context while something is being read.
func TestContext(t *testing.T) {
	for name, entries := range map[string][]entry{
		"large file":   {file("large", strings.Repeat("x", 64<<20))},
		"many entries": manyFiles(20_000),
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			whole := bytes.NewReader(archive(t, entries...))
			first := io.LimitReader(whole, 1<<20)
			r := io.MultiReader(first, readerFunc(func(p []byte) (int, error) {
				cancel()
				return whole.Read(p)
			}))
			_, err := Unpack(ctx, r, t.TempDir(), Options{})
			must.ErrorIs(t, err, context.Canceled)
			must.Greater(t, whole.Size()-4<<20, int64(whole.Len())) // at most 4 MiB were read
		})
	}
}

type readerFunc func(p []byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

func TestDirMustExist(t *testing.T) {
	for _, dir := range []string{t.TempDir() + "/missing", "/etc/passwd"} {
		_, err := Unpack(t.Context(), bytes.NewReader(archive(t)), dir, Options{})
		must.ErrorContains(t, err, "open "+dir)
	}
}

func TestZerosBecomeHoles(t *testing.T) {
	content := strings.Repeat("\x00", 8<<20) + "middle" + strings.Repeat("\x00", 8<<20)
	root := mustUnpack(t, Options{}, file("sparse", content))
	got, err := os.ReadFile(root + "/sparse")
	must.NoError(t, err)
	must.True(t, content == string(got))
	must.Less(t, 1<<20/512, lstat(t, root+"/sparse").Blocks)
}
