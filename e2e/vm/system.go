package main

import (
	"context"
	"embed"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"

	"nomad-driver-nspawn/e2e/host"
	"nomad-driver-nspawn/e2e/host/hosttest"
)

// guest contains files that the virtual machine has in addition to those of a host.
//
//go:embed guest
var guest embed.FS

// diskSize is that of all disks. The files are sparse.
const diskSize = "3G"

// system is what a virtual machine boots from. It must not be changed.
type system struct{ dir string }

func (s system) disk() string      { return filepath.Join(s.dir, "disk.ext4") }
func (s system) kernel() string    { return filepath.Join(s.dir, "vmlinuz") }
func (s system) initramfs() string { return filepath.Join(s.dir, "initramfs.img") }

// tree is a directory or a file, and its path in the virtual machine.
type tree struct{ source, target string }

// makeSystem returns the cached system of a suite. The first call makes it.
func makeSystem(ctx context.Context, suite string) (system, error) {
	root, err := hostRoot(ctx, suite)
	if err != nil {
		return system{}, err
	}
	busybox, err := host.BusyboxImage(ctx)
	if err != nil {
		return system{}, err
	}
	debian, err := host.DebianImage(ctx)
	if err != nil {
		return system{}, err
	}
	disk, err := host.BusyboxDisk(ctx)
	if err != nil {
		return system{}, err
	}
	trees := []tree{{root, "/"}, {busybox, hosttest.Busybox}, {disk, hosttest.BusyboxDisk}, {debian, hosttest.Debian}}
	recipe := fmt.Sprint(trees, diskSize)
	err = fs.WalkDir(guest, "guest", func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		text, err := guest.ReadFile(path)
		recipe += "\n" + path + "\n" + string(text)
		return err
	})
	if err != nil {
		return system{}, err
	}
	dir, err := cached(ctx, "system", recipe, func(ctx context.Context, dir string) error {
		return fillSystem(ctx, system{dir}, trees)
	})
	return system{dir}, err
}

var lowerLayer = regexp.MustCompile(`(?m) / / .* - overlay .*lowerdir=([^,\n]+)`)

// hostRoot returns the cached root of the disposable hosts of a suite, which is the lower
// layer of a host's root.
func hostRoot(ctx context.Context, suite string) (string, error) {
	h, err := host.Up(ctx, host.Options{Suite: suite})
	if err != nil {
		return "", err
	}
	mounts, err := os.ReadFile(filepath.Join(h.Root(), "proc/1/mountinfo"))
	if err != nil {
		return "", fmt.Errorf("read mounts of a host: %w", err)
	}
	lower := lowerLayer.FindSubmatch(mounts)
	if lower == nil {
		return "", fmt.Errorf("find the lower layer of a host's root in its mounts:\n%s", mounts)
	}
	return string(lower[1]), h.Down()
}

// fillSystem makes a system from copies of trees, with Debian's kernel for the release of
// the root.
func fillSystem(ctx context.Context, s system, trees []tree) error {
	progress("making the system of the virtual machine (about 15 seconds)…")
	root := filepath.Join(s.dir, "root")
	for _, t := range trees {
		if err := run(ctx, "cp", "-a", t.source, filepath.Join(root, t.target)); err != nil {
			return err
		}
	}
	files, err := fs.Sub(guest, "guest")
	if err != nil {
		return err
	}
	if err := os.CopyFS(root, files); err != nil {
		return fmt.Errorf("copy files of the virtual machine: %w", err)
	}
	// apt-get needs it: the root's own resolv.conf is a link to a service that does not
	// run.
	if err := run(ctx, "cp", "--remove-destination", "--dereference", "/etc/resolv.conf", filepath.Join(root, "etc/resolv.conf")); err != nil {
		return err
	}
	if err := run(ctx, "chroot", root, "/bin/sh", "/boot/prepare"); err != nil {
		return err
	}
	for _, file := range []string{s.kernel(), s.initramfs()} {
		if err := os.Rename(filepath.Join(root, "boot", filepath.Base(file)), file); err != nil {
			return err
		}
	}
	if err := makeDisk(ctx, root, s.disk()); err != nil {
		return err
	}
	return os.RemoveAll(root)
}

// makeDisk makes a disk image of a directory.
func makeDisk(ctx context.Context, dir, image string) error {
	return run(ctx, "mke2fs", "-q", "-t", "ext4", "-d", dir, image, diskSize)
}
