package host

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"
)

func TestCachedMakesOnce(t *testing.T) {
	t.Setenv(cacheVar, t.TempDir())
	var made atomic.Int32
	work := func(_ context.Context, path string) error {
		made.Add(1)
		return os.WriteFile(path, []byte("x"), 0o600)
	}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			path, err := cached(t.Context(), "things", "thing", "recipe", work)
			if err != nil || !exists(path) {
				t.Errorf("%q is not there: %v", path, err)
			}
		})
	}
	wg.Wait()
	must.EqOp(t, 1, made.Load())

	first, err := cached(t.Context(), "things", "thing", "recipe", work)
	must.NoError(t, err)
	second, err := cached(t.Context(), "things", "thing", "another recipe", work)
	must.NoError(t, err)
	must.NotEq(t, first, second)
	must.EqOp(t, 2, made.Load())
}

func TestCachedKeepsNothingUnfinished(t *testing.T) {
	base := t.TempDir()
	t.Setenv(cacheVar, base)
	broken := errors.New("no mirror")
	_, err := cached(t.Context(), "things", "thing", "", func(_ context.Context, path string) error {
		must.NoError(t, os.MkdirAll(filepath.Join(path, "half"), 0o755))
		return broken
	})
	must.ErrorIs(t, err, broken)
	left, err := os.ReadDir(filepath.Join(base, "things"))
	must.NoError(t, err)
	must.Len(t, 1, left)
	must.EqOp(t, ".thing.lock", left[0].Name())
}

func TestRemoveTreeRemovesImmutableFiles(t *testing.T) {
	requireRoot(t)
	dir := filepath.Join(t.TempDir(), "tree")
	must.NoError(t, os.MkdirAll(filepath.Join(dir, "sub"), 0o755))
	for _, path := range []string{filepath.Join(dir, "sub", "file"), filepath.Join(dir, "sub")} {
		f, err := os.OpenFile(path, os.O_CREATE, 0o600)
		if errors.Is(err, syscall.EISDIR) {
			f, err = os.Open(path)
		}
		must.NoError(t, err)
		must.NoError(t, unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, immutable))
		must.NoError(t, f.Close())
	}
	must.Error(t, os.RemoveAll(dir)) // proves that the flags are effective
	must.NoError(t, removeTree(dir))
	must.DirNotExists(t, dir)
}

func TestRemoveTreeRefusesMounts(t *testing.T) {
	requireRoot(t)
	dir := t.TempDir()
	target := filepath.Join(dir, "mnt")
	must.NoError(t, os.Mkdir(target, 0o755))
	must.NoError(t, unix.Mount("none", target, "tmpfs", 0, ""))
	precious := filepath.Join(target, "precious")
	must.NoError(t, os.WriteFile(precious, nil, 0o600))
	must.ErrorContains(t, removeTree(dir), "is a mount point")
	must.FileExists(t, precious)
	must.NoError(t, unix.Unmount(target, 0))
	must.NoError(t, removeTree(dir))
	must.DirNotExists(t, dir)
}

func TestParseNomadVersion(t *testing.T) {
	for out, want := range map[string][3]int{
		"Nomad v1.11.3\nBuildDate 2026-03-24T20:34:07Z\nRevision 173ab08a02\n": {1, 11, 3},
		"Nomad v1.12.0+ent\n":     {1, 12, 0},
		"Nomad v1.11.3-beta.1\nx": {},
		"nomad: not found":        {},
		"":                        {},
	} {
		version, ok := parseNomadVersion(out)
		must.EqOp(t, want != [3]int{}, ok, must.Sprint(out))
		if ok {
			must.Eq(t, want, version)
		}
	}
}

func TestParseBind(t *testing.T) {
	b, err := ParseBind("/src:/dst:ro")
	must.NoError(t, err)
	must.Eq(t, Bind{Source: "/src", Target: "/dst", ReadOnly: true}, b)
	b, err = ParseBind("testdata:/dst")
	must.NoError(t, err)
	wd, err := os.Getwd()
	must.NoError(t, err)
	must.Eq(t, Bind{Source: filepath.Join(wd, "testdata"), Target: "/dst"}, b)
	for _, s := range []string{"", "/src", "/src:/dst:rw", "/a:/b:ro:x"} {
		_, err := ParseBind(s)
		must.ErrorContains(t, err, "want SRC:DST")
	}
}
