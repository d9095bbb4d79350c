package host

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// busyboxFiles are the files that make the tree a system. Like most images that do not
// come from a distribution, it has no getent.
var busyboxFiles = [...]struct{ path, content string }{
	{"etc/group", "root:x:0:\napp:x:1000:\nnogroup:x:65534:\n"},
	{"etc/os-release", "ID=busybox\nNAME=BusyBox\nPRETTY_NAME=BusyBox\n"},
	{"etc/passwd", "root:x:0:0:root:/root:/bin/sh\n" +
		"app:x:1000:1000:app:/home/app:/bin/sh\n" +
		"nobody:x:65534:65534:nobody:/nonexistent:/bin/false\n"},
}

// BusyboxImage returns a directory with a guest of a single static program:
// busybox, a link for each applet, the users root, app (1000) and nobody. It
// must not be changed.
func BusyboxImage(ctx context.Context) (string, error) {
	recipe := fmt.Sprint("applets in usr/bin", busyboxFiles)
	return cached(ctx, "images", "busybox", recipe, makeBusybox)
}

func makeBusybox(ctx context.Context, dir string) error {
	const tool = "/bin/busybox"
	if err := Install(ctx, map[string]string{tool: "busybox-static"}); err != nil {
		return err
	}
	if out, _ := exec.CommandContext(ctx, "ldd", tool).Output(); len(out) > 0 {
		return fmt.Errorf("%s is linked dynamically: install busybox-static in its place", tool)
	}
	for _, d := range []struct {
		path string
		mode os.FileMode
	}{
		{"dev", 0o755},
		{"etc", 0o755},
		{"home/app", 0o755},
		{"proc", 0o555},
		{"root", 0o700},
		{"run", 0o755},
		{"sys", 0o555},
		{"tmp", 0o777 | os.ModeSticky},
		{"usr/bin", 0o755},
		{"usr/sbin", 0o755},
		{"var/tmp", 0o777 | os.ModeSticky},
	} {
		path := filepath.Join(dir, d.path)
		if err := os.MkdirAll(path, 0o755); err != nil {
			return err
		}
		if err := os.Chmod(path, d.mode); err != nil {
			return err
		}
	}
	for _, name := range []string{"bin", "sbin"} {
		if err := os.Symlink("usr/"+name, filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	for _, f := range busyboxFiles {
		if err := os.WriteFile(filepath.Join(dir, f.path), []byte(f.content), 0o644); err != nil {
			return err
		}
	}
	if err := os.Chown(filepath.Join(dir, "home/app"), 1000, 1000); err != nil {
		return err
	}
	return linkApplets(ctx, tool, dir)
}

// linkApplets copies busybox into the tree and creates a link to it at the path of every
// applet.
func linkApplets(ctx context.Context, tool, dir string) error {
	busybox := filepath.Join(dir, "usr/bin/busybox")
	if err := run(ctx, "cp", "--dereference", tool, busybox); err != nil {
		return err
	}
	applets, err := exec.CommandContext(ctx, busybox, "--list-full").Output()
	if err != nil {
		return fmt.Errorf("list busybox applets: %w", err)
	}
	for applet := range strings.FieldsSeq(string(applets)) {
		path := filepath.Join(dir, applet)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.Symlink("/usr/bin/busybox", path); err != nil && !os.IsExist(err) {
			return err
		}
	}
	return nil
}

// BusyboxDisk returns a file: an ext4 file system with the tree of BusyboxImage.
// It must not be changed.
func BusyboxDisk(ctx context.Context) (string, error) {
	tree, err := BusyboxImage(ctx)
	if err != nil {
		return "", err
	}
	// dm-verity uses blocks of 4096 bytes, so the file system must not use smaller ones.
	options := []string{"-q", "-t", "ext4", "-b", "4096", "-d", tree}
	dir, err := cached(ctx, "images", "busybox-disk", fmt.Sprint(options), func(ctx context.Context, dir string) error {
		const tool = "/sbin/mke2fs"
		if err := Install(ctx, map[string]string{tool: "e2fsprogs"}); err != nil {
			return err
		}
		if err := os.Mkdir(dir, 0o755); err != nil {
			return err
		}
		return run(ctx, tool, append(options, filepath.Join(dir, "disk.raw"), "16M")...)
	})
	return filepath.Join(dir, "disk.raw"), err
}

const guestPackages = "systemd,systemd-sysv,dbus,nginx-light,iproute2,systemd-resolved,procps,libidn2-0,dnsmasq-base"

// prepareGuest removes the machine ID and the host name: each container gets its own.
const prepareGuest = `set -eu
systemctl enable systemd-networkd.service systemd-resolved.service nginx.service
systemctl mask apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service fstrim.timer
passwd --lock root
: >/etc/machine-id
rm -f /etc/hostname /var/lib/dbus/machine-id
rm -rf /var/lib/apt/lists/* /var/cache/apt/*
`

// DebianImage returns a directory with a guest that boots: Debian trixie with
// systemd, networkd, resolved and nginx. It must not be changed.
func DebianImage(ctx context.Context) (string, error) {
	return debian(ctx, "images", "debian", "trixie", guestPackages, prepareGuest)
}
