package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"

	"nomad-driver-nspawn/e2e/host/hosttest"
)

// mountTmpfs returns a store on a file system of 1 MiB.
func mountTmpfs(t *testing.T) (s Store, top string) {
	t.Helper()
	hosttest.RequireRoot(t)
	top = t.TempDir()
	must.NoError(t, unix.Mount("tmpfs", top, "tmpfs", 0, "size=1m"))
	t.Cleanup(func() { must.NoError(t, unix.Unmount(top, 0)) })
	return Store{Dir: filepath.Join(top, "images")}, top
}

// fillDisk writes a file until the file system is full.
func fillDisk(path string) error {
	file, err := os.Create(path)
	if err != nil {
		return err
	}
	defer file.Close()
	for err == nil {
		_, err = file.Write(bytes.Repeat([]byte("x"), 4096))
	}
	return err
}

func TestDiskFull(t *testing.T) {
	s, top := mountTmpfs(t)
	p := s.Begin()
	defer p.Close()
	for name, fill := range map[string]func(context.Context, string) error{
		"fill":   func(_ context.Context, dir string) error { return fillDisk(dir + "/file") },
		"finish": func(_ context.Context, dir string) error { _ = fillDisk(dir + "/file"); return nil },
	} {
		t.Run(name, func(t *testing.T) {
			_, err := p.Layer(t.Context(), digest("big"), "here", fill)
			must.ErrorIs(t, err, unix.ENOSPC)
			must.ErrorContains(t, err, "get layer "+digest("big")+": write "+top)
			must.SliceEmpty(t, contents(t, s, "tmp"))
			must.SliceEmpty(t, contents(t, s, "layers"))
		})
	}
	a := digest("a")
	_, err := p.Layer(t.Context(), a, "here", fillTree(a))
	must.NoError(t, err)
	must.ErrorIs(t, fillDisk(top+"/other"), unix.ENOSPC)
	image := imageOfLayers("image", "a")
	err = p.Add(t.Context(), image, "name")
	must.ErrorIs(t, err, unix.ENOSPC)
	must.ErrorContains(t, err, "add image "+image.Digest+": write "+s.imagePath(image.Digest))
	must.SliceEmpty(t, contents(t, s, "tmp"))
	must.SliceEmpty(t, contents(t, s, "images"))
	p.Close()
	_, err = s.Collect(t.Context(), CollectOptions{}) // this needs no space
	must.NoError(t, err)
	must.SliceEmpty(t, contents(t, s, "layers"))
	must.NoError(t, os.Remove(top+"/other"))
	mustPull(t, s, image, "name")
	mustAcquire(t, s, "web", image.Digest)
}

func TestReadOnly(t *testing.T) {
	s, top := mountTmpfs(t)
	image := imageOfLayers("image", "a")
	mustPull(t, s, image, "name")
	must.NoError(t, unix.Mount("", top, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""))
	_, _, err := s.Lookup("name")
	must.NoError(t, err)
	_, err = s.List(t.Context())
	must.NoError(t, err)
	p := s.Begin()
	defer p.Close()
	_, err = p.Layer(t.Context(), digest("a"), "here", nil)
	must.NoError(t, err)
	_, err = p.Layer(t.Context(), digest("b"), "here", nil)
	must.ErrorIs(t, err, unix.EROFS)
	must.ErrorContains(t, err, "get layer "+digest("b")+": mkdir "+s.Dir)
	_, err = s.Acquire(t.Context(), "web", image.Digest)
	must.ErrorIs(t, err, unix.EROFS)
	must.ErrorContains(t, err, "acquire image "+image.Digest+" for machine web: ")
}

// TestPowerCut checks a copy of the block device that is made at the end of a pull: it
// contains what a power failure would have left.
func TestPowerCut(t *testing.T) {
	hosttest.RequireRoot(t)
	top := t.TempDir()
	disk, copied := filepath.Join(top, "disk"), filepath.Join(top, "copied")
	must.NoError(t, os.WriteFile(disk, nil, 0o600))
	must.NoError(t, os.Truncate(disk, 32<<20))
	must.NoError(t, command("mkfs.ext4", "-q", disk))
	mountDisk(t, disk, top+"/before")

	s := Store{Dir: top + "/before/images"}
	image := imageOfLayers("image", "a")
	mustPull(t, s, image, "name")
	// An fsync of another program commits the journal, including the rename, but does not
	// write the content of files that are not allocated yet.
	must.NoError(t, writeSynced(top+"/before/other", nil))
	must.NoError(t, copyFile(disk, copied))

	mountDisk(t, copied, top+"/after")
	s.Dir = top + "/after/images"
	must.NoError(t, checkStore(t.Context(), s))
	found, _, err := s.Lookup("name")
	must.NoError(t, err)
	must.Eq(t, image, found)
}

// mountDisk mounts a file with a file system.
func mountDisk(t *testing.T, file, at string) {
	t.Helper()
	must.NoError(t, os.Mkdir(at, 0o700))
	if err := command("mount", "-o", "loop", file, at); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		t.Skipf("SKIPPED: no loop device: %v", err)
	}
	t.Cleanup(func() { must.NoError(t, command("umount", at)) })
}

func command(name string, args ...string) error {
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s %q: %w: %s", name, args, err, out)
	}
	return nil
}

func copyFile(from, to string) error {
	source, err := os.Open(from)
	if err != nil {
		return err
	}
	defer source.Close()
	target, err := os.Create(to)
	if err != nil {
		return err
	}
	_, err = io.Copy(target, source)
	return errors.Join(err, target.Close())
}
