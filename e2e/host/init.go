package host

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
)

// Inits are the inits that Debian has besides systemd's, by the name of their guest.
var Inits = []string{"openrc", "runit", "s6", "sysvinit"}

// initPackages make a guest of each init. Debian has no package that makes s6 an init.
var initPackages = map[string]string{
	"openrc":   "openrc initscripts",
	"runit":    "runit-init",
	"s6":       "s6",
	"sysvinit": "sysvinit-core sysv-rc",
}

// prepareInitGuests takes systemd away, which is what systemd-nspawn would boot.
const prepareInitGuests = `set -eu
rm -f /usr/lib/systemd/systemd
apt-get update -q
`

// prepareInitGuest installs an init. When all is started, it says
// "all is up" on the console and makes the file /run/all-is-up.
// The init of s6 is what people write who make one of s6-svscan.
const prepareInitGuest = `set -eu
name=$1 packages=$2
apt-get install -qy --no-install-recommends --allow-remove-essential -o Dpkg::Options::=--force-unsafe-io $packages systemd-sysv-
rm -rf /var/lib/apt/lists/* /var/cache/apt/*
printf '#!/bin/sh\necho all is up >/dev/console\n: >/run/all-is-up\n' >/etc/rc.local
case $name in
openrc)
	ln -s openrc-init /usr/sbin/init
	;;
s6)
	mkdir -p /etc/s6/.s6-svscan /etc/s6/say
	printf '#!/bin/sh\necho all is up\n: >/run/all-is-up\nexec sleep 1000\n' >/etc/s6/say/run
	printf '#!/bin/sh\necho bye\n' >/etc/s6/.s6-svscan/finish
	printf '#!/bin/sh\ncp -a /etc/s6 /run/service\nexec s6-svscan /run/service\n' >/usr/sbin/init
	chmod +x /etc/s6/say/run /etc/s6/.s6-svscan/finish /usr/sbin/init
	;;
esac
chmod +x /etc/rc.local
`

// InitImages returns a directory with a guest for each of Inits: the packages of
// DebianImage, and another init. It must not be changed.
func InitImages(ctx context.Context) (string, error) {
	base, err := DebianImage(ctx)
	if err != nil {
		return "", err
	}
	recipe := fmt.Sprint(filepath.Base(base), initPackages, prepareInitGuests, prepareInitGuest)
	return cached(ctx, "images", "inits", recipe, func(ctx context.Context, dir string) error {
		progress("installing %v, each in a guest of its own (half a minute)…", Inits)
		if err := os.Mkdir(dir, 0o755); err != nil {
			return err
		}
		common := filepath.Join(dir, "common")
		if err := copyGuest(ctx, base, common, prepareInitGuests); err != nil {
			return err
		}
		for _, name := range Inits {
			if err := copyGuest(ctx, common, filepath.Join(dir, name), prepareInitGuest, name, initPackages[name]); err != nil {
				return fmt.Errorf("make the guest %s: %w", name, err)
			}
		}
		return os.RemoveAll(common)
	})
}

// copyGuest copies a tree and runs a script in the copy, which has a network meanwhile.
func copyGuest(ctx context.Context, from, to, script string, args ...string) error {
	if err := run(ctx, "cp", "-a", "--reflink=auto", from, to); err != nil {
		return err
	}
	resolver := filepath.Join(to, "etc/resolv.conf")
	if err := os.Remove(resolver); err != nil {
		return err
	}
	if err := run(ctx, "cp", "--dereference", "/etc/resolv.conf", resolver); err != nil {
		return err
	}
	shell := []string{"DEBIAN_FRONTEND=noninteractive", "chroot", to, "/bin/sh", "-c", script, "sh"}
	return run(ctx, "env", append(shell, args...)...)
}
