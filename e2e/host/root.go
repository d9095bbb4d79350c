package host

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

const hostPackages = "systemd,systemd-sysv,systemd-container,dbus,iproute2,nftables,iptables," +
	"libpam-systemd,procps,systemd-resolved,ca-certificates,containernetworking-plugins,curl,udev,kmod," +
	"firewalld,ufw,dnsmasq-base,bind9-dnsutils"

// prepareHost runs in a fresh root. Networkd must not manage the uplink, and nothing may
// wait for it or run by itself while tests measure. Only the sysctls of the network belong
// to the host: the others would change the machine.
const prepareHost = `set -eu
printf '[Match]\nName=` + uplink + `\n[Link]\nUnmanaged=yes\n' >/etc/systemd/network/00-uplink.network
for conf in /usr/lib/sysctl.d/*.conf; do
	grep '^-\?net\.' "$conf" >"/etc/sysctl.d/${conf##*/}" || true
done
systemctl enable systemd-networkd.service systemd-resolved.service
systemctl disable firewalld.service ufw.service
systemctl mask systemd-networkd-wait-online.service apt-daily.timer apt-daily-upgrade.timer \
	dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service fstrim.timer
rm -rf /var/lib/apt/lists/* /var/cache/apt/*
`

// hostRoot returns the cached root of a suite, made with debootstrap the first
// time. It must not be changed.
func hostRoot(ctx context.Context, suite string) (string, error) {
	if !slices.Contains(suites, suite) {
		return "", fmt.Errorf("suite %q: want one of %s", suite, strings.Join(suites, ", "))
	}
	return debian(ctx, "roots", suite, suite, hostPackages, prepareHost)
}

// debian makes a Debian tree: the minimal base system and packages, modified by a script
// that runs in it.
func debian(ctx context.Context, sub, name, suite, packages, script string) (string, error) {
	return cached(ctx, sub, name, packages+"\n"+script, func(ctx context.Context, dir string) error {
		if err := debootstrap(ctx, suite, packages, dir); err != nil {
			return err
		}
		return run(ctx, "chroot", dir, "/bin/sh", "-c", script)
	})
}

func debootstrap(ctx context.Context, suite, packages, dir string) error {
	const keyring = "/usr/share/keyrings/debian-archive-keyring.gpg"
	const tool = "/usr/sbin/debootstrap"
	err := Install(ctx, map[string]string{tool: "debootstrap", keyring: "debian-archive-keyring"})
	if err != nil {
		return err
	}
	progress("debootstrap %s (about a minute)…", suite)
	args := []string{"--variant=minbase", "--keyring=" + keyring, "--include=" + packages, suite, dir, mirror()}
	// An older debootstrap does not know newer suites. All suites since 2005 share the
	// script of sid.
	const scripts = "/usr/share/debootstrap/scripts"
	if !exists(filepath.Join(scripts, suite)) {
		args = append(args, filepath.Join(scripts, "sid"))
	}
	return run(ctx, tool, args...)
}

var debianURI = regexp.MustCompile(`https?://\S+/debian/?(?:\s|$)`)

// mirror returns the mirror that the user wants, or else the one that the machine uses.
func mirror() string {
	if m := os.Getenv("DEBIAN_MIRROR"); m != "" {
		return m
	}
	files, _ := filepath.Glob("/etc/apt/sources.list.d/*")
	for _, file := range append([]string{"/etc/apt/sources.list"}, files...) {
		text, _ := os.ReadFile(file)
		for line := range strings.Lines(string(text)) {
			if strings.HasPrefix(strings.TrimSpace(line), "#") {
				continue
			}
			if uri := debianURI.FindString(line); uri != "" {
				return strings.TrimSpace(uri)
			}
		}
	}
	return "http://deb.debian.org/debian"
}
