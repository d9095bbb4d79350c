package links

import (
	"context"
	"fmt"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// attach makes a link of any kind except Veth.
func (h *Host) attach(ctx context.Context, host, container *space, s Spec) (Connection, error) {
	switch s.Kind {
	case Zone:
		return h.joinZone(ctx, host, container, s)
	case Bridge:
		bridge, err := host.LinkByName(s.Of)
		if err != nil {
			return Connection{}, fmt.Errorf("find bridge %s of the host (does it exist?): %w", s.Of, err)
		}
		if bridge.Type() != "bridge" {
			return Connection{}, fmt.Errorf("use %s as bridge: it is a link of type %s", s.Of, bridge.Type())
		}
		return h.addPort(host, container, s, func(netlink.Link) (netlink.Link, error) { return bridge, nil })
	case Macvlan, Ipvlan, Interface:
		parent, err := host.LinkByName(s.Of)
		if err != nil {
			return Connection{}, fmt.Errorf("find interface %s of the host (does it exist?): %w", s.Of, err)
		}
		return h.share(host, container, s, parent)
	default:
		return Connection{}, fmt.Errorf("connect by %q: unknown kind of connection", s.Kind)
	}
}

// addPort makes a veth link whose host end becomes a port of a bridge. Both ends are
// brought up before that. A new bridge loses its carrier when it gets a port that is
// down, and systemd-networkd would then assign the bridge other addresses than it already
// offers.
func (h *Host) addPort(host, container *space, s Spec, find func(port netlink.Link) (netlink.Link, error)) (Connection, error) {
	outside, err := h.makePair(host, container, s)
	if err != nil {
		return Connection{}, err
	}
	if err := noIPv6(outside.name()); err != nil {
		return Connection{}, err
	}
	inside, err := container.end(s.interfaceName())
	if err != nil {
		return Connection{}, err
	}
	for _, e := range []end{outside, inside} {
		if err := e.up(); err != nil {
			return Connection{}, err
		}
	}
	bridge, err := find(outside.Link)
	if err != nil {
		return Connection{}, err
	}
	name := bridge.Attrs().Name
	if err := host.LinkSetMaster(outside.Link, bridge); err != nil {
		return Connection{}, fmt.Errorf("make %s a port of bridge %s: %w", outside.name(), name, err)
	}
	return Connection{Interface: inside.name(), Link: outside.name(), Bridge: name, MAC: h.mac(s.Machine, containerEnd)}, nil
}

// awaitUp waits until the kernel reports a link as up. On a busy host that can be up to a
// second after both ends were brought up (net/core/link_watch.c).
func (s *space) awaitUp(ctx context.Context, link netlink.Link) error {
	updates, done := make(chan netlink.LinkUpdate), make(chan struct{})
	if err := netlink.LinkSubscribe(updates, done); err != nil {
		close(done)
		return fmt.Errorf("watch link %s: %w", link.Attrs().Name, err)
	}
	defer func() {
		close(done)
		for range updates { // The sender does not check done while it sends.
		}
	}()
	for {
		now, err := s.LinkByIndex(link.Attrs().Index)
		if err != nil {
			return fmt.Errorf("watch link %s: %w", link.Attrs().Name, err)
		}
		if now.Attrs().OperState == netlink.OperUp {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait until link %s is up: %w", link.Attrs().Name, ctx.Err())
		case _, ok := <-updates:
			if !ok {
				return fmt.Errorf("watch link %s: the kernel stopped sending updates", link.Attrs().Name)
			}
		}
	}
}

// share makes a link of a host interface in the container, or moves the interface there.
// It uses the names of systemd-nspawn, mv-NAME and iv-NAME.
func (h *Host) share(host, container *space, s Spec, parent netlink.Link) (Connection, error) {
	if s.Kind == Interface {
		return moveInterface(host, container, s, parent)
	}
	attrs := netlink.NewLinkAttrs()
	attrs.ParentIndex, attrs.Namespace = parent.Attrs().Index, netlink.NsFd(container.file.Fd())
	c := Connection{MAC: h.mac(s.Machine, containerEnd)}
	var link netlink.Link
	if s.Kind == Macvlan {
		attrs.Name, attrs.HardwareAddr = s.interfaceName(), c.MAC
		link = &netlink.Macvlan{LinkAttrs: attrs, Mode: netlink.MACVLAN_MODE_BRIDGE}
	} else {
		attrs.Name, c.MAC = s.interfaceName(), parent.Attrs().HardwareAddr
		link = &netlink.IPVlan{LinkAttrs: attrs, Mode: netlink.IPVLAN_MODE_L2}
	}
	if err := host.LinkAdd(link); err != nil {
		return Connection{}, fmt.Errorf("create %s %s of %s: %w", s.Kind, attrs.Name, s.Of, err)
	}
	if err := host.LinkSetUp(parent); err != nil {
		return Connection{}, fmt.Errorf("bring up %s: %w", s.Of, err)
	}
	c.Interface = attrs.Name
	return c, nil
}

// shorten cuts a name to the length that the kernel allows.
func shorten(name string) string { return name[:min(len(name), unix.IFNAMSIZ-1)] }

// moveInterface moves an interface from the host to the container. The kernel moves it
// back when the namespace ends, unless the interface is virtual.
func moveInterface(host, container *space, s Spec, link netlink.Link) (Connection, error) {
	if err := host.LinkSetNsFd(link, int(container.file.Fd())); err != nil {
		return Connection{}, fmt.Errorf("move interface %s to the container: %w", s.Of, err)
	}
	inside, err := container.end(s.Of)
	if err != nil {
		return Connection{}, err
	}
	name := s.interfaceName()
	if name != s.Of {
		if err := container.LinkSetName(inside.Link, name); err != nil {
			return Connection{}, fmt.Errorf("rename interface %s to %s: %w", s.Of, name, err)
		}
	}
	return Connection{Interface: name, MAC: link.Attrs().HardwareAddr}, nil
}
