package layer

import (
	"archive/tar"
	"bufio"
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"
)

// guarded returns a directory to unpack into. Around it are files that no archive may
// reach.
func guarded(t testing.TB) (guard, dir string) {
	t.Helper()
	guard = t.TempDir()
	dir = filepath.Join(guard, "dir")
	must.NoError(t, os.Mkdir(dir, 0o755))
	must.NoError(t, os.Mkdir(filepath.Join(guard, "outside"), 0o700))
	must.NoError(t, os.WriteFile(filepath.Join(guard, "outside/secret"), []byte("secret"), 0o600))
	must.NoError(t, os.Symlink("outside", filepath.Join(guard, "link")))
	return guard, dir
}

// around lists the files in guard, except for those in dir.
func around(t testing.TB, guard string) []string {
	t.Helper()
	var all []string
	for _, line := range details(t, guard) {
		if !strings.HasPrefix(line, `"dir`) {
			all = append(all, line)
		}
	}
	return all
}

// hostile returns archives that try to harm the host, with the expected error. "" means
// that the archive is harmless if it is unpacked correctly.
func hostile(t testing.TB, outside string) map[string]struct {
	data []byte
	want string
} {
	pack := func(entries ...entry) []byte { return archive(t, entries...) }
	long := strings.Repeat("d/", 2499) + "ee"
	return map[string]struct {
		data []byte
		want string
	}{
		"absolute":                   {pack(file(outside+"/secret", "x")), ""},
		"dotdot":                     {pack(file("../outside/secret", "x")), `name contains ".."`},
		"dotdot inside":              {pack(dir("a"), file("a/../b", "x")), `name contains ".."`},
		"dotdot last":                {pack(dir("a/..")), `name contains ".."`},
		"dotdot absolute":            {pack(file("/../outside/x", "x")), `name contains ".."`},
		"dots":                       {pack(file("...", "x")), ""},
		"no name":                    {pack(file("", "x")), "name is empty"},
		"root a file":                {pack(file(".", "x")), `entry "."`},
		"root a link":                {pack(symlink(".", outside)), "top of the tree"},
		"root a link to slash":       {pack(symlink("/", outside)), "top of the tree"},
		"root a hard link":           {pack(file("a", ""), link(".", "a")), "top of the tree"},
		"root a device":              {pack(node(tar.TypeChar, ".", 1, 3)), "top of the tree"},
		"write through link":         {pack(symlink("l", outside), file("l/secret", "x")), ""},
		"write over link":            {pack(symlink("l", outside+"/secret"), file("l", "x")), ""},
		"mode over link":             {pack(symlink("l", outside), dir("l").with(owner(9, 9, 0o777))), ""},
		"relative link":              {pack(symlink("l", "../outside"), file("l/secret", "x"), dir("l/d")), ""},
		"chain of links":             {pack(symlink("a", ".."), symlink("b", "a/.."), symlink("c", "b/outside"), file("c/secret", "x")), ""},
		"chain in a directory":       {pack(dir("d"), symlink("d/a", "../.."), symlink("d/b", "a/outside"), file("d/b/secret", "x")), ""},
		"link to the guard":          {pack(symlink("l", "../link"), file("l/secret", "x")), ""},
		"link to proc":               {pack(symlink("l", "/proc/self/root"+outside), file("l/secret", "x")), ""},
		"loop":                       {pack(symlink("a", "b"), symlink("b", "a"), file("a/x", "x")), "too many levels"},
		"loop with more":             {pack(symlink("a", "b/c"), symlink("b", "a/c"), file("a/x", "x")), "too many levels"},
		"loop of what is not there":  {pack(symlink("p", "m/../p/x"), file("p/x", "x")), "too many levels"},
		"endless chain":              {pack(append(chain(60), file("l0/x", "x"))...), "too many levels"},
		"file as directory":          {pack(file("a", ""), file("a/b", "")), "not a directory"},
		"device as directory":        {pack(node(tar.TypeChar, "a", 1, 3), file("a/b", "")), "not a directory"},
		"hard link out":              {pack(link("a", outside+"/secret")), `entry "a": make hard link`},
		"hard link dotdot":           {pack(link("a", "../outside/secret")), `name contains ".."`},
		"hard link to link":          {pack(symlink("l", outside+"/secret"), link("a", "l"), file("a", "x")), ""},
		"hard link through link":     {pack(symlink("l", outside), link("a", "l/secret")), "no such file"},
		"hard link to nothing":       {pack(link("a", "b")), `entry "a": make hard link to "b": stat: no such file`},
		"hard link to no name":       {pack(link("a", "").with(func(h *tar.Header) { h.Linkname = "." })), "make hard link"},
		"hard link to directory":     {pack(dir("a"), link("b", "a")), "operation not permitted"},
		"device 0:0":                 {pack(node(tar.TypeChar, "a", 0, 0)), "whiteout of overlayfs"},
		"device out of range":        {pack(node(tar.TypeChar, "a", 1<<12, 0)), "no device 4096:0"},
		"device wraps to 0:0":        {pack(node(tar.TypeChar, "a", 0, 1<<20)), "no device 0:1048576"},
		"directory becomes link":     {pack(file("a/b", ""), dir("a/c"), symlink("a", outside), file("a/secret", "x"), dir("a/c").with(owner(9, 9, 0o777))), ""},
		"directory becomes link, .":  {pack(dir("a"), symlink("a", ".."), dir("a/outside").with(owner(9, 9, 0o777))), ""},
		"time of what became a link": {pack(dir("a/outside"), symlink("b", "../outside"), file("a", ""), symlink("a", "..")), ""},
		"removal through link":       {pack(symlink("l", ".."), file("l/outside/secret", ""), file("l/outside", "x")), ""},
		"removal of link":            {pack(symlink("l", outside), file("l", "x")), ""},
		"removal below":              {pack(symlink("a/l", outside), file("a", "x")), ""},
		"long name":                  {pack(file(long, "")), "file name too long"},
		"long component":             {pack(file(strings.Repeat("x", 5000), "")), "file name too long"},
		"long link":                  {pack(symlink("l", long)), "file name too long"},
		"NUL in name":                {bytes.Replace(pack(file(strings.Repeat("é", 10)+"@NUL@", "")), []byte("@NUL@"), []byte("\x00/../"), 1), "invalid tar header"},
		"sparse bomb":                {sparse(t, 1<<50), "larger than the limit"},
		"truncated":                  {truncated(t, 1<<50), "larger than the limit"},
		"truncated small":            {truncated(t, 1<<19), "unexpected EOF"},
		"too many bytes":             {pack(file("a", strings.Repeat("x", 1<<19)), file("b", strings.Repeat("x", 1<<19)), file("c", "x")), `entry "c": its 1 bytes`},
		"too many entries":           {pack(manyFiles(2000)...), "more than 1000 entries"},
		"many directories":           {pack(file(strings.Repeat("d/", 1500)+"e", "")), "more than 1000 entries"},
		"unknown kind":               {pack(entry{Header: tar.Header{Typeflag: 'V', Name: "label"}}), "type 'V' are not supported"},
		"no archive":                 {[]byte(strings.Repeat("<html>", 1000)), "invalid tar header"},
		"nothing":                    {nil, "truncated"},
	}
}

// chain returns links to one another, the last one to a missing directory.
func chain(n int) []entry {
	var all []entry
	for i := range n {
		all = append(all, symlink(fmt.Sprintf("l%d", i), fmt.Sprintf("l%d", i+1)))
	}
	return all
}

// truncated returns the beginning of an archive with one large file.
func truncated(t testing.TB, size int64) []byte {
	t.Helper()
	var out bytes.Buffer
	must.NoError(t, tar.NewWriter(&out).WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "large", Mode: 0o644, Size: size}))
	return append(out.Bytes(), make([]byte, 5000)...)
}

// sparse returns an archive with a file that is a single hole (GNU tar manual, "PAX
// Format, Version 1.0").
func sparse(t testing.TB, size int64) []byte {
	t.Helper()
	sparseMap := "0\n" + strings.Repeat("\x00", 510)
	h := file("sparse", sparseMap).with(func(h *tar.Header) {
		h.PAXRecords = map[string]string{"@@@.sparse.major": "1", "@@@.sparse.minor": "0", "@@@.sparse.name": "sparse", "@@@.sparse.realsize": fmt.Sprint(size)}
	})
	// The writer of archive/tar refuses these records.
	return bytes.ReplaceAll(archive(t, h), []byte("@@@.sparse"), []byte("GNU.sparse"))
}

func TestHostileArchives(t *testing.T) {
	for _, whiteouts := range []bool{false, true} {
		guard, _ := guarded(t)
		for name, c := range hostile(t, filepath.Join(guard, "outside")) {
			t.Run(fmt.Sprintf("%s %t", name, whiteouts), func(t *testing.T) {
				dir := filepath.Join(guard, "dir")
				must.NoError(t, os.RemoveAll(dir))
				must.NoError(t, os.Mkdir(dir, 0o755))
				// The parent's time changes together with dir itself, but not later.
				before := around(t, guard)
				opts := Options{Whiteouts: whiteouts, MaxBytes: 1 << 20, MaxEntries: 1000}
				_, err := Unpack(t.Context(), bytes.NewReader(c.data), dir, opts)
				must.Eq(t, before, around(t, guard))
				if c.want == "" {
					must.NoError(t, err)
				} else {
					must.ErrorContains(t, err, c.want)
					must.Less(t, 1000, len(err.Error()))
				}
			})
		}
	}
}

func TestHostileWhiteouts(t *testing.T) {
	for name, c := range map[string]struct {
		entries []entry
		want    string
	}{
		"nothing":           {[]entry{file(".wh.", "")}, `cannot hide ""`},
		"dot":               {[]entry{file("a/.wh..", "")}, `cannot hide "."`},
		"dotdot":            {[]entry{file(".wh...", "")}, `cannot hide ".."`},
		"dotdot before":     {[]entry{file("../.wh.outside", "")}, `name contains ".."`},
		"through link":      {[]entry{symlink("l", "../outside"), file("l/.wh.secret", "")}, ""},
		"opaque by link":    {[]entry{symlink("l", "../outside"), file("l/.wh..wh..opq", "")}, ""},
		"opaque a file":     {[]entry{file("f", ""), file("f/.wh..wh..opq", "")}, "not a directory"},
		"hard link to":      {[]entry{file(".wh.a", ""), link("b", "a")}, "no such file"},
		"device of a layer": {[]entry{node(tar.TypeChar, "a", 0, 0)}, "whiteout of overlayfs"},
	} {
		t.Run(name, func(t *testing.T) {
			guard, dir := guarded(t)
			before := around(t, guard)
			_, err := Unpack(t.Context(), bytes.NewReader(archive(t, c.entries...)), dir, Options{Whiteouts: true})
			must.Eq(t, before, around(t, guard))
			if c.want == "" {
				must.NoError(t, err)
			} else {
				must.ErrorContains(t, err, c.want)
			}
		})
	}
}

// TestSparseWithoutLimit uses a file that is larger than any file system supports.
func TestSparseWithoutLimit(t *testing.T) {
	_, err := Unpack(t.Context(), bytes.NewReader(sparse(t, 1<<62)), t.TempDir(), Options{})
	must.ErrorContains(t, err, "extend file to 4611686018427387904 bytes: file too large")
}

// TestChainOfMissingDirectories uses a chain of links. The kernel never sees more than
// one of them, because each leads through a directory that does not exist yet.
func TestChainOfMissingDirectories(t *testing.T) {
	var entries []entry
	for i := range 100 {
		entries = append(entries, symlink(fmt.Sprintf("l%d", i), fmt.Sprintf("m%d/../l%d", i, i+1)))
	}
	dir, _, err := unpack(t, Options{}, append(entries, file("l0/x", ""))...)
	must.ErrorIs(t, err, unix.ELOOP)
	must.DirExists(t, filepath.Join(dir, "m30"))
	must.DirNotExists(t, filepath.Join(dir, "m50"))
}

// TestManyLongPaths uses a directory with a long path again and again: the memory for the
// paths is limited, even if few files are created.
func TestManyLongPaths(t *testing.T) {
	one := archive(t, dir(strings.Repeat(strings.Repeat("d", 250)+"/", 15)))
	one = one[:len(one)-2*512]
	fits := maxPaths / 3900
	times := 0
	stream := readerFunc(func(p []byte) (int, error) {
		if times++; times > 2*fits {
			return 0, io.EOF
		}
		return copy(p, one), nil
	})
	_, err := Unpack(t.Context(), bufio.NewReaderSize(stream, len(one)), t.TempDir(), Options{Unmarked: true})
	must.ErrorContains(t, err, "more than the limit of 67108864 bytes")
	must.Between(t, fits, times, 2*fits)
}

// TestPathTooLong uses paths that no file system supports.
func TestPathTooLong(t *testing.T) {
	for _, name := range []string{strings.Repeat("d/", 500_000) + "f", strings.Repeat("n", 256)} {
		_, _, err := unpack(t, Options{}, file(name, ""))
		must.ErrorContains(t, err, "file name too long")
		must.Less(t, 600, len(err.Error()))
	}
}
