package links

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"os"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"nomad-driver-nspawn/nspawn/network/dump"
)

// zonePrefix begins the name of a zone's bridge. zoneLock is the file with which
// systemd-nspawn serializes the creation and removal of zones.
const (
	zonePrefix = "vz-"
	zoneLock   = "/run/systemd/nspawn-network-zone"
)

// ZoneBridge returns the name of a zone's bridge, as systemd-nspawn has it.
func ZoneBridge(zone string) string { return zonePrefix + zone }

// joinZone makes the container a port of the zone's bridge, and creates the bridge if it
// is missing. The bridge is left down: systemd-networkd brings it up with an address, and
// offers addresses by DHCP there.
func (h *Host) joinZone(ctx context.Context, host, container *space, s Spec) (Connection, error) {
	name := ZoneBridge(s.Of)
	if len(name) >= unix.IFNAMSIZ {
		return Connection{}, fmt.Errorf("name zone %s: the name is longer than %d characters", s.Of, unix.IFNAMSIZ-1-len(zonePrefix))
	}
	lock, err := lockZones()
	if err != nil {
		return Connection{}, err
	}
	defer lock.Close()
	return h.addPort(host, container, s, func(port netlink.Link) (netlink.Link, error) {
		if zone, err := host.LinkByName(name); err == nil {
			return zone, nil
		}
		if err := host.awaitUp(ctx, port); err != nil {
			return nil, err
		}
		return host.makeBridge(name)
	})
}

func (s *space) makeBridge(name string) (netlink.Link, error) {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	if err := s.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil && !errors.Is(err, unix.EEXIST) {
		return nil, fmt.Errorf("create bridge %s of the zone: %w", name, err)
	}
	bridge, err := s.LinkByName(name)
	if err != nil {
		return nil, fmt.Errorf("find bridge %s of the zone: %w", name, err)
	}
	return bridge, nil
}

// MakeZone prepares a zone for a guest that systemd-nspawn connects, with a port that the
// zone keeps until RemoveZones removes it. systemd-networkd gives a bridge that has lost its
// carrier other addresses than it goes on to offer (252), and the guest's own port is down
// at first, and gone while the guest reboots.
func MakeZone(ctx context.Context, zone string) error {
	host, err := openHost()
	if err != nil {
		return err
	}
	defer host.Close()
	lock, err := lockZones()
	if err != nil {
		return err
	}
	defer lock.Close()
	if err := host.makeZone(ctx, zone); err != nil {
		return fmt.Errorf("make zone %s: %w", zone, err)
	}
	return nil
}

// makeZone is MakeZone for a caller that has the lock.
func (s *space) makeZone(ctx context.Context, zone string) error {
	near, far := keptPort(zone)
	if port, err := s.LinkByName(near); err == nil {
		if port.Attrs().MasterIndex != 0 {
			return nil
		}
		if err := s.remove(port); err != nil { // a plugin that died has left it
			return err
		}
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name = near
	if err := s.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: far}); err != nil {
		return fmt.Errorf("create veth link %s: %w", near, err)
	}
	var port end
	for _, name := range []string{far, near} {
		if err := noIPv6(name); err != nil {
			return err
		}
		var err error
		if port, err = s.end(name); err != nil {
			return err
		}
		if err := port.up(); err != nil {
			return err
		}
	}
	if err := s.awaitUp(ctx, port.Link); err != nil {
		return err
	}
	bridge, err := s.makeBridge(ZoneBridge(zone))
	if err != nil {
		return err
	}
	return s.LinkSetMaster(port.Link, bridge)
}

// keptPrefix begins the names of the port that a zone keeps.
const keptPrefix = "zk-"

// keptPort returns the names of the port that a zone keeps, and of its other end. A zone's
// name may be as long as that of a link.
func keptPort(zone string) (near, far string) {
	hash := fnv.New32a()
	hash.Write([]byte(zone))
	near = fmt.Sprintf("%s%08x", keptPrefix, hash.Sum32())
	return near, near + "-e"
}

// lockZones holds the lock until the returned file is closed. Other processes hold it
// only for a moment. systemd-nspawn removes the file when it has done its work.
func lockZones() (*os.File, error) {
	for {
		file, err := os.OpenFile(zoneLock, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
		if err != nil {
			return nil, fmt.Errorf("open lock of zones: %w", err)
		}
		for err = unix.EINTR; errors.Is(err, unix.EINTR); {
			err = unix.Flock(int(file.Fd()), unix.LOCK_EX)
		}
		var stat unix.Stat_t
		if err == nil {
			err = unix.Fstat(int(file.Fd()), &stat)
		}
		if err != nil {
			return nil, errors.Join(fmt.Errorf("lock zones: %w", err), file.Close())
		}
		if stat.Nlink > 0 {
			return file, nil
		}
		file.Close()
	}
}

// RemoveZones removes zones without ports of machines. The last container of a zone does
// not remove it, so the first process that sees an empty zone does. Zones are created and
// filled under the lock, except by systemd-nspawn: inUse reports whether a machine relies
// on a zone, which has no port of it before its start and while it reboots.
func RemoveZones(inUse func(zone string) bool) error {
	host, err := openHost()
	if err != nil {
		return err
	}
	defer host.Close()
	if empty, err := host.emptyZones(); err != nil || len(empty) == 0 {
		return err
	}
	lock, err := lockZones()
	if err != nil {
		return err
	}
	defer lock.Close()
	empty, err := host.emptyZones()
	if err != nil {
		return err
	}
	for _, bridge := range empty {
		zone := strings.TrimPrefix(bridge.Attrs().Name, zonePrefix)
		if inUse(zone) {
			continue
		}
		if err := host.removeZone(bridge, zone); err != nil {
			return fmt.Errorf("remove zone %s: %w", zone, err)
		}
	}
	return nil
}

// removeZone removes the bridge last, so that what is left after an error is found again.
func (s *space) removeZone(bridge netlink.Link, zone string) error {
	near, _ := keptPort(zone)
	if port, err := s.LinkByName(near); err == nil {
		if err := s.remove(port); err != nil {
			return err
		}
	}
	return s.remove(bridge)
}

func (s *space) emptyZones() (empty []netlink.Link, err error) {
	all, err := dump.Complete(s.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	used := map[int]bool{}
	for _, link := range all {
		if !strings.HasPrefix(link.Attrs().Name, keptPrefix) {
			used[link.Attrs().MasterIndex] = true
		}
	}
	for _, link := range all {
		if link.Type() == "bridge" && strings.HasPrefix(link.Attrs().Name, zonePrefix) && !used[link.Attrs().Index] {
			empty = append(empty, link)
		}
	}
	return empty, nil
}
