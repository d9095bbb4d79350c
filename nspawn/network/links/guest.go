package links

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"nomad-driver-nspawn/nspawn/network/dump"
)

// AwaitGuest waits until a guest that systemd-nspawn has connected gives itself an IPv4
// address, and returns its connection. The guest can choose any address, so an address
// counts only if it belongs to a network that the host has on the link.
func AwaitGuest(ctx context.Context, namespace *os.File, s Spec) (Connection, error) {
	container, err := openContainer(namespace)
	if err != nil {
		return Connection{}, err
	}
	defer container.Close()
	inside, err := container.end(guestName)
	if err != nil {
		return Connection{}, err
	}
	outside, err := peer(namespace, inside)
	if err != nil {
		return Connection{}, fmt.Errorf("find the host's end of %s: %w", guestName, err)
	}
	c := Connection{Interface: guestName, Link: outside.Attrs().Name, MAC: inside.Attrs().HardwareAddr}
	reach := outside
	if index := outside.Attrs().MasterIndex; index != 0 {
		if reach, err = netlink.LinkByIndex(index); err != nil {
			return Connection{}, fmt.Errorf("find the bridge of %s: %w", c.Link, err)
		}
		c.Bridge = reach.Attrs().Name
	}
	c.IPv4, err = awaitIPv4(ctx, netns.NsHandle(namespace.Fd()), inside, reach)
	return c, err
}

// peer returns the host's end of a link. If the other end were not on this host, its
// index could be the index of any link here. So the host's link must refer back to the
// container's namespace.
func peer(namespace *os.File, inside end) (netlink.Link, error) {
	outside, err := netlink.LinkByIndex(inside.Attrs().ParentIndex)
	if err != nil {
		return nil, err
	}
	id, err := netlink.GetNetNsIdByFd(int(namespace.Fd()))
	if err != nil {
		return nil, fmt.Errorf("identify network namespace: %w", err)
	}
	if id < 0 || outside.Attrs().NetNsID != id || outside.Attrs().ParentIndex != inside.Attrs().Index {
		return nil, fmt.Errorf("%s is not the other end", outside.Attrs().Name)
	}
	return outside, nil
}

// awaitIPv4 returns the first address of the link inside that belongs to a network of the
// link outside.
func awaitIPv4(ctx context.Context, namespace netns.NsHandle, inside, outside netlink.Link) (netip.Prefix, error) {
	var broken error // it may be read once updates is closed
	updates, done := make(chan netlink.AddrUpdate), make(chan struct{})
	err := netlink.AddrSubscribeWithOptions(updates, done, netlink.AddrSubscribeOptions{
		Namespace: &namespace, ListExisting: true, ErrorCallback: func(err error) { broken = err },
	})
	if err != nil {
		close(done)
		return netip.Prefix{}, fmt.Errorf("subscribe to addresses: %w", err)
	}
	defer func() {
		close(done)
		for range updates { // The sender does not check done while it sends.
		}
	}()
	for {
		select {
		case <-ctx.Done():
			return netip.Prefix{}, fmt.Errorf("wait for its address: %w", ctx.Err())
		case update, ok := <-updates:
			if !ok {
				return netip.Prefix{}, errors.Join(errors.New("wait for its address"), broken)
			}
			address, ok := global(update)
			if ok && update.NewAddr && update.LinkIndex == inside.Attrs().Index && isNeighbor(outside, address) {
				return address, nil
			}
		}
	}
}

// global returns the IPv4 address of an update if it is neither link-local nor restricted
// to the link.
func global(update netlink.AddrUpdate) (netip.Prefix, bool) {
	ip, ok := netip.AddrFromSlice(update.LinkAddress.IP)
	bits, _ := update.LinkAddress.Mask.Size()
	ip = ip.Unmap()
	return netip.PrefixFrom(ip, bits), ok && ip.Is4() && ip.IsGlobalUnicast() && update.Scope == unix.RT_SCOPE_UNIVERSE
}

// isNeighbor reports whether an address belongs to a network that the host has on a link,
// and is not the host's own.
func isNeighbor(link netlink.Link, address netip.Prefix) bool {
	list, err := dump.Complete(func() ([]netlink.Addr, error) { return netlink.AddrList(link, netlink.FAMILY_V4) })
	if err != nil {
		return false
	}
	for _, a := range list {
		host, ok := netip.AddrFromSlice(a.IP.To4())
		bits, _ := a.Mask.Size()
		if ok && netip.PrefixFrom(host, bits).Contains(address.Addr()) {
			return host != address.Addr()
		}
	}
	return false
}
