package idmap

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"testing"

	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"

	"nomad-driver-nspawn/e2e/host/hosttest"
)

// newRanges returns an empty record, on a host with the given files.
func newRanges(t *testing.T, files map[string]string) Ranges {
	t.Helper()
	root := t.TempDir()
	for path, text := range files {
		hosttest.Write(t, root+path, text, 0o644, os.Getuid(), os.Getgid())
	}
	return Ranges{Dir: filepath.Join(root, "uid"), root: root}
}

func acquire(t *testing.T, r Ranges, name string) uint32 {
	t.Helper()
	base, err := r.Acquire(name)
	must.NoError(t, err)
	must.Zero(t, base%RangeSize)
	must.Between(t, MinBase, base, maxBase)
	return base
}

func TestAcquire(t *testing.T) {
	r := newRanges(t, nil)
	_, ok, err := r.Lookup("web")
	must.NoError(t, err)
	must.False(t, ok)
	must.NoError(t, r.Release("web"))

	web := acquire(t, r, "web")
	must.Eq(t, web, acquire(t, r, "web"))
	must.NotEq(t, web, acquire(t, r, "db/with: odd name"))
	found, ok, err := r.Lookup("web")
	must.NoError(t, err)
	must.True(t, ok)
	must.Eq(t, web, found)
	held, err := os.Readlink(filepath.Join(r.Dir, strconv.Itoa(int(web))))
	must.NoError(t, err)
	must.Eq(t, "web", held)

	must.NoError(t, r.Release("web"))
	_, ok, err = r.Lookup("web")
	must.NoError(t, err)
	must.False(t, ok)
	must.Eq(t, web, acquire(t, r, "web"))
	must.Eq(t, web, acquire(t, newRanges(t, nil), "web")) // the same on any host
	_, err = r.Acquire("")
	must.Error(t, err)
}

func TestAcquireCollision(t *testing.T) {
	r := newRanges(t, nil)
	first := acquire(t, r, "web")
	must.NoError(t, r.Release("web"))
	must.NoError(t, os.Symlink("other", r.path(first)))
	second := acquire(t, r, "web")
	must.Eq(t, first+RangeSize, second)
	must.NoError(t, r.Release("other"))
	must.Eq(t, second, acquire(t, r, "web")) // it keeps its range
}

func TestAcquireSkipsAccountsOfHost(t *testing.T) {
	free := newRanges(t, nil)
	want := acquire(t, free, "web")
	next := want + RangeSize
	for name, files := range map[string]map[string]string{
		"user":          {"/etc/passwd": fmt.Sprintf("root:x:0:0::/:/bin/sh\nlow:x:%d:9::/:\n", want)},
		"group":         {"/etc/group": fmt.Sprintf("top:x:%d:\n", want+RangeSize-1)},
		"subuid":        {"/etc/subuid": fmt.Sprintf("# comment\nroot:%d:65536\n", want-1)},
		"subgid in it":  {"/etc/subgid": fmt.Sprintf("root:%d:2\n", want+5)},
		"subgid to end": {"/etc/subgid": fmt.Sprintf("root:%d:100000", want-100_000+1)},
	} {
		t.Run(name, func(t *testing.T) {
			must.Eq(t, next, acquire(t, newRanges(t, files), "web"))
		})
	}
	for name, files := range map[string]map[string]string{
		"near":  {"/etc/subuid": fmt.Sprintf("a:%d:65536\nb:%d:65536\n", want-RangeSize, next)},
		"empty": {"/etc/subgid": fmt.Sprintf("a:%d:0\n", want)},
		"junk":  {"/etc/passwd": "\n:::\nx\n+::::::\n", "/etc/subuid": "a:b:c\nd:-1:5\n"},
	} {
		t.Run(name, func(t *testing.T) {
			must.Eq(t, want, acquire(t, newRanges(t, files), "web"))
		})
	}
}

func TestAcquireSkipsRangeOfNspawn(t *testing.T) {
	want := acquire(t, newRanges(t, nil), "web")
	lockFile := fmt.Sprintf("/run/systemd/nspawn-uid/%d", want)
	r := newRanges(t, map[string]string{lockFile: ""})
	file, err := os.OpenFile(r.root+lockFile, os.O_RDWR, 0)
	must.NoError(t, err)
	must.NoError(t, unix.FcntlFlock(file.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_WRLCK}))
	must.Eq(t, want+RangeSize, acquire(t, r, "web"))
	must.NoError(t, file.Close())

	must.NoError(t, r.Release("web"))
	must.Eq(t, want, acquire(t, r, "web")) // a leftover of a systemd-nspawn that was killed
}

func TestAcquireWrapsAndEnds(t *testing.T) {
	all := fmt.Sprintf("a:%d:%d\n", MinBase, maxBase-MinBase) // all but the last range
	r := newRanges(t, map[string]string{"/etc/subuid": all})
	must.Eq(t, uint32(maxBase), acquire(t, r, "web"))
	_, err := r.Acquire("db")
	must.ErrorContains(t, err, "all 28664 ranges are taken")
}

func TestAcquireAtOnce(t *testing.T) {
	r := newRanges(t, nil)
	var all sync.WaitGroup
	var bases sync.Map
	for i := range 200 {
		all.Go(func() {
			name := fmt.Sprint("machine-", i%100) // each name occurs twice
			base, err := r.Acquire(name)
			if err != nil {
				t.Error(err)
			}
			if other, taken := bases.LoadOrStore(base, name); taken && other != name {
				t.Errorf("%s and %s both have %d", name, other, base)
			}
		})
	}
	all.Wait()
	links, err := os.ReadDir(r.Dir)
	must.NoError(t, err)
	must.SliceLen(t, 100, links)
}
