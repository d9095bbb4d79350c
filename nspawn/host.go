package nspawn

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"nomad-driver-nspawn/nspawn/cgroup"
	"nomad-driver-nspawn/nspawn/dirs"
	"nomad-driver-nspawn/nspawn/idmap"
	"nomad-driver-nspawn/nspawn/programs"
	"nomad-driver-nspawn/nspawn/quota"
	"nomad-driver-nspawn/nspawn/rootfs"
	"nomad-driver-nspawn/nspawn/systemd"
)

// MinVersion is the oldest systemd that this driver runs on: that of Debian 12.
const MinVersion = 252

// Networkd gives addresses in zones, and to the host's end of a guest's veth link.
const Networkd = "systemd-networkd.service"

// Host is what this host offers to machines.
type Host struct {
	Systemd     string // version as systemd reports it, for example "257.13-1~deb13u1"
	Version     int    // its major number
	Nspawn      string // path of systemd-nspawn
	Controllers []string
	// UserNamespaces and Overlay, the usual way to make roots, are nil if they work,
	// otherwise the reason. ChownedOverlay is about the fallback if layers cannot be
	// ID-mapped.
	UserNamespaces, Overlay, ChownedOverlay error
	// QuotaKind is how the writable layers of machines can be limited, or "" if only
	// layers in memory can be.
	QuotaKind quota.Kind
	// Machined is started when it is called; the others run.
	Machined, Networkd, Resolved bool
	// Problems prevent machines from running. Each says how to solve it.
	Problems []error
}

// DetectHost returns what this host offers.
func DetectHost(ctx context.Context, bus *systemd.Conn, dirs dirs.Dirs) Host {
	host := Host{UserNamespaces: userNamespaces()}
	problem := func(err error) {
		if err != nil {
			host.Problems = append(host.Problems, err)
		}
	}
	var err error
	host.Nspawn, err = programs.Nspawn()
	problem(err)
	host.Controllers, err = cgroup.Controllers()
	problem(err)
	problem(mountNamespace())
	host.Systemd, err = bus.Version(ctx)
	if err != nil {
		problem(err)
		return host
	}
	host.Version, err = programs.Major(host.Systemd)
	problem(err)
	if err == nil && host.Version < MinVersion {
		problem(fmt.Errorf("systemd %s is too old: version %d or newer is needed", host.Systemd, MinVersion))
	}
	host.Machined, err = bus.Available(ctx, "org.freedesktop.machine1")
	problem(err)
	host.Networkd, err = bus.Runs(ctx, Networkd)
	problem(err)
	host.Resolved, err = bus.Runs(ctx, "systemd-resolved.service")
	problem(err)
	if !host.Machined {
		problem(errors.New("systemd-machined is not available: install the package systemd-container"))
	}
	host.Overlay = rootfs.Probe(dirs.State, rootfs.Overlay.Mount)
	host.ChownedOverlay = host.Overlay
	if errors.Is(host.Overlay, idmap.ErrUnmappable) {
		host.ChownedOverlay = rootfs.Probe(dirs.State, func(o rootfs.Overlay) error { return o.MountChowned(ctx) })
	}
	host.QuotaKind, _ = quota.Detect(dirs.WritableLayers())
	return host
}

// mountNamespace returns an error if systemd cannot see the roots that we mount.
func mountNamespace() error {
	own, err := os.Readlink("/proc/self/ns/mnt")
	if err != nil {
		return fmt.Errorf("read the mount namespace: %w", err)
	}
	pid1, err := os.Readlink("/proc/1/ns/mnt")
	if err != nil {
		return fmt.Errorf("read the mount namespace of PID 1 (the Nomad client must run as root): %w", err)
	}
	if own != pid1 {
		return errors.New("the Nomad client runs in a mount namespace of its own: remove PrivateTmp=, ProtectSystem= and the like from its unit")
	}
	return nil
}

func userNamespaces() error {
	if _, err := os.Stat("/proc/self/ns/user"); err != nil {
		return errors.New("the kernel has no user namespaces (CONFIG_USER_NS)")
	}
	text, err := os.ReadFile("/proc/sys/user/max_user_namespaces")
	if err == nil && strings.TrimSpace(string(text)) == "0" {
		return errors.New("user namespaces are turned off: set the sysctl user.max_user_namespaces")
	}
	return nil
}
