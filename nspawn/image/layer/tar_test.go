package layer

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"
)

// TestLikeTar lets GNU tar pack a tree, unpacks it, and compares the result with what GNU
// tar itself unpacks.
func TestLikeTar(t *testing.T) {
	source := sourceTree(t)
	for name, flags := range map[string][]string{
		"pax":        {"--format=pax", "--xattrs", "--xattrs-include=*", "--sparse"},
		"pax 0.0":    {"--format=pax", "--sparse", "--sparse-version=0.0"},
		"pax 0.1":    {"--format=pax", "--sparse", "--sparse-version=0.1"},
		"gnu":        {"--format=gnu", "--sparse"},
		"gnu, names": {"--format=gnu", "--absolute-names", "--transform=s,^[.],/,"},
		"oldgnu":     {"--format=oldgnu"},
	} {
		t.Run(name, func(t *testing.T) {
			archive := filepath.Join(t.TempDir(), "archive.tar")
			run(t, "tar", append([]string{"-C", source, "--numeric-owner", "-cf", archive}, append(flags, ".")...)...)
			theirs, ours := t.TempDir(), t.TempDir()
			run(t, "tar", "-C", theirs, "--numeric-owner", "--same-owner", "--xattrs", "--xattrs-include=*", "-xpf", archive)

			stream, err := os.Open(archive)
			must.NoError(t, err)
			defer stream.Close()
			stats, err := Unpack(t.Context(), stream, ours, Options{})
			must.NoError(t, err)
			must.Eq(t, find(t, theirs), find(t, ours))
			must.Eq(t, details(t, theirs), details(t, ours))
			must.Eq(t, int64(len(find(t, ours))), stats.Entries)
			must.Less(t, 1<<20/512, lstat(t, ours+"/sparse").Blocks)
		})
	}
}

// find returns the output of find(1) for a tree.
func find(t *testing.T, dir string) []string {
	t.Helper()
	out := run(t, "find", dir, "-printf", `%P %y %m %U:%G %s links %n %T@ %l\0`)
	lines := strings.Split(strings.TrimSuffix(out, "\x00"), "\x00")
	for i, line := range lines {
		if strings.Contains(line, " d ") { // the size of a directory depends on the file system
			kept := strings.Fields(line)
			lines[i] = strings.Join(append(kept[:len(kept)-4], kept[len(kept)-3:]...), " ")
		}
	}
	return lines
}

func run(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	must.NoError(t, err, must.Sprint(string(out)))
	return string(out)
}

// sourceTree makes a tree with every type of file, and hundreds of files of all sizes.
func sourceTree(t testing.TB) string {
	t.Helper()
	top := t.TempDir()
	random := rand.New(rand.NewPCG(1, 2))
	at := func(name string) string { return filepath.Join(top, name) }
	for i := range 300 {
		name := at(fmt.Sprintf("%d/%d/file %d", i%7, i%3, i))
		must.NoError(t, os.MkdirAll(filepath.Dir(name), 0o755))
		data := make([]byte, random.IntN(1<<(i%19)))
		for j := range data {
			data[j] = byte(random.IntN(256))
		}
		must.NoError(t, os.WriteFile(name, data, 0o600))
		must.NoError(t, os.Chown(name, random.IntN(65536), random.IntN(65536)))
		must.NoError(t, unix.Chmod(name, uint32(random.IntN(0o10000))))
	}
	deep := at(strings.Repeat(strings.Repeat("n", 60)+"/", 12))
	must.NoError(t, os.MkdirAll(deep, 0o711))
	must.NoError(t, os.WriteFile(deep+"/"+strings.Repeat("ü", 120), []byte("deep"), 0o644))
	must.NoError(t, os.Symlink(strings.Repeat("t/", 200), at("long link")))
	must.NoError(t, os.Symlink("../../etc", at("outside")))
	must.NoError(t, os.Lchown(at("outside"), 12, 13))
	must.NoError(t, os.WriteFile(at("new\nline \\ \"x\" \xff"), []byte("x"), 0o644))
	must.NoError(t, os.Link(at("0/0/file 0"), at("6/hard")))
	must.NoError(t, os.Link(at("outside"), at("outside too")))
	must.NoError(t, os.Link(deep+"/"+strings.Repeat("ü", 120), at("long hard link")))
	must.NoError(t, unix.Mkfifo(at("fifo"), 0o604))
	must.NoError(t, unix.Mknod(at("null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
	must.NoError(t, unix.Mknod(at("disk"), unix.S_IFBLK|0o660, int(unix.Mkdev(8, 17))))
	must.NoError(t, unix.Mkdir(at("empty"), 0o700))
	must.NoError(t, unix.Chmod(at("empty"), 0o3705))
	must.NoError(t, unix.Setxattr(at("1/1/file 1"), "user.tag", []byte("a\x00\nb"), 0))
	must.NoError(t, unix.Setxattr(at("empty"), "user.tag", nil, 0))
	must.NoError(t, unix.Setxattr(at("2/2/file 2"), "security.capability", []byte(pingCapability), 0))
	sparse, err := os.Create(at("sparse"))
	must.NoError(t, err)
	_, err = sparse.WriteAt([]byte("middle"), 5<<20)
	must.NoError(t, err)
	must.NoError(t, sparse.Truncate(9<<20+123))
	must.NoError(t, sparse.Close())
	setTimes(t, top, random)
	return top
}

// setTimes sets the times of everything in top, with nanoseconds, some before 1970.
func setTimes(t testing.TB, top string, random *rand.Rand) {
	t.Helper()
	var all []string
	must.NoError(t, filepath.Walk(top, func(path string, _ os.FileInfo, err error) error {
		all = append(all, path)
		return err
	}))
	for _, path := range all {
		at := unix.NsecToTimespec(time.Unix(random.Int64N(2_000_000_000)-100_000_000, random.Int64N(1e9)).UnixNano())
		must.NoError(t, unix.UtimesNanoAt(unix.AT_FDCWD, path, []unix.Timespec{at, at}, unix.AT_SYMLINK_NOFOLLOW))
	}
}
