package layer

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"

	"nomad-driver-nspawn/e2e/host/hosttest"
)

// TestMain runs the tests in a mount namespace of their own, as root.
func TestMain(m *testing.M) {
	if os.Geteuid() != 0 && os.Getenv("CI") != "true" {
		fmt.Println("SKIPPED: the tests of this package need root")
		return
	}
	hosttest.RunPrivate(m, unix.CLONE_NEWNS)
}

// stamp is the time of entries without a time of their own.
var stamp = time.Unix(1_700_000_000, 123456789)

// entry is an entry of an archive.
type entry struct {
	tar.Header
	content string
}

func file(name, content string) entry {
	return entry{tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644}, content}
}

func dir(name string) entry {
	return entry{Header: tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: 0o755}}
}

func symlink(name, target string) entry {
	return entry{Header: tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: target, Mode: 0o777}}
}

func link(name, target string) entry {
	return entry{Header: tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: target, Mode: 0o644}}
}

func node(kind byte, name string, major, minor int64) entry {
	return entry{Header: tar.Header{Typeflag: kind, Name: name, Mode: 0o600, Devmajor: major, Devminor: minor}}
}

func (e entry) with(change func(h *tar.Header)) entry {
	change(&e.Header)
	return e
}

func owner(uid, gid int, mode int64) func(h *tar.Header) {
	return func(h *tar.Header) { h.Uid, h.Gid, h.Mode = uid, gid, mode }
}

func xattr(name, value string) func(h *tar.Header) {
	return func(h *tar.Header) { h.PAXRecords = map[string]string{"SCHILY.xattr." + name: value} }
}

// archive returns a tar stream in PAX format.
func archive(t testing.TB, entries ...entry) []byte {
	t.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, e := range entries {
		e.Format, e.Size = tar.FormatPAX, int64(len(e.content))
		if e.ModTime.IsZero() && e.Typeflag != tar.TypeXGlobalHeader {
			e.ModTime = stamp
		}
		must.NoError(t, w.WriteHeader(&e.Header), must.Sprintf("%.100q", e.Name))
		_, err := w.Write([]byte(e.content))
		must.NoError(t, err)
	}
	must.NoError(t, w.Close())
	return out.Bytes()
}

// unpack unpacks entries into a directory of its own.
func unpack(t testing.TB, opts Options, entries ...entry) (string, Stats, error) {
	t.Helper()
	dir := t.TempDir()
	stats, err := Unpack(t.Context(), bytes.NewReader(archive(t, entries...)), dir, opts)
	return dir, stats, err
}

func mustUnpack(t testing.TB, opts Options, entries ...entry) string {
	t.Helper()
	dir, _, err := unpack(t, opts, entries...)
	must.NoError(t, err)
	return dir
}

// listing lists the files in dir: names and types, with content or target.
//
//	etc/
//	etc/os-release = ID=debian
//	lib -> usr/lib
func listing(t testing.TB, dir string) []string {
	t.Helper()
	lines := []string{}
	must.NoError(t, filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || path == dir {
			return err
		}
		name, _ := filepath.Rel(dir, path)
		switch {
		case e.IsDir():
			lines = append(lines, name+"/")
		case e.Type() == fs.ModeSymlink:
			target, err := os.Readlink(path)
			lines = append(lines, name+" -> "+target)
			return err
		case e.Type().IsRegular():
			content, err := os.ReadFile(path)
			lines = append(lines, name+" = "+string(content))
			return err
		default:
			lines = append(lines, name+" "+e.Type().String())
		}
		return nil
	}))
	return lines
}

// details lists every attribute that an archive can hold, of dir and everything in it.
func details(t testing.TB, dir string) []string {
	t.Helper()
	var lines []string
	must.NoError(t, filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, _ := filepath.Rel(dir, path)
		stat := lstat(t, path)
		line := fmt.Sprintf("%q %06o %d:%d links %d %s", name, stat.Mode, stat.Uid, stat.Gid, stat.Nlink,
			time.Unix(stat.Mtim.Unix()).UTC().Format(time.RFC3339Nano))
		switch {
		case e.Type() == fs.ModeSymlink:
			target, _ := os.Readlink(path)
			line += " -> " + target
		case e.Type().IsRegular():
			content, err := os.ReadFile(path)
			must.NoError(t, err)
			line += fmt.Sprintf(" %d %x", stat.Size, sha256.Sum256(content))
		case e.Type()&fs.ModeDevice != 0:
			line += fmt.Sprintf(" device %d:%d", unix.Major(stat.Rdev), unix.Minor(stat.Rdev))
		}
		lines = append(lines, line+" "+xattrs(t, path))
		return nil
	}))
	return lines
}

func lstat(t testing.TB, path string) unix.Stat_t {
	t.Helper()
	var stat unix.Stat_t
	must.NoError(t, unix.Lstat(path, &stat), must.Sprint(path))
	return stat
}

// xattrs returns the extended attributes of a file.
func xattrs(t testing.TB, path string) string {
	t.Helper()
	names := make([]byte, 64<<10)
	n, err := unix.Llistxattr(path, names)
	must.NoError(t, err)
	var all []string
	for name := range strings.SplitSeq(strings.TrimRight(string(names[:n]), "\x00"), "\x00") {
		if name == "" {
			continue
		}
		value := make([]byte, 64<<10)
		n, err := unix.Lgetxattr(path, name, value)
		must.NoError(t, err)
		all = append(all, fmt.Sprintf("%s=%q", name, value[:n]))
	}
	return strings.Join(all, " ")
}

// mode returns "uid:gid mode" of the file at path.
func mode(t testing.TB, path string) string {
	t.Helper()
	stat := lstat(t, path)
	return fmt.Sprintf("%d:%d %06o", stat.Uid, stat.Gid, stat.Mode)
}
