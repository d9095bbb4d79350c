// Package network does from outside what a DHCP client would do in a machine
// with a veth link (--network-veth): bring the link up and give it an address.
// A machine that runs a single command has no such client, and with nothing up
// inside, systemd-networkd does not even configure the host's end.
//
// All waiting is for notifications of the kernel, and ends with the machine
// too.
package network

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
)

// ErrExited says that the machine has ended.
var ErrExited = errors.New("machine has ended")

// Result is how a machine reaches the network.
type Result struct {
	Interface string       // in the machine
	Address   netip.Prefix // of the interface
	Gateway   netip.Addr   // the host's end of the link
}

// Configure brings up lo and host0 in the machine whose first process is
// leader, waits for systemd-networkd to give the host's end of the link a
// subnet, as it does for every ve-* link on its own, and gives host0 an address
// of it and a default route. Called again, it returns the same. The machine
// must have sent READY=1: only then is its link in place.
func Configure(ctx context.Context, leader int) (Result, error) {
	m, err := open(ctx, leader)
	if err != nil {
		return Result{}, fmt.Errorf("configure network: %w", err)
	}
	defer m.close()
	result, err := m.configure(ctx)
	if err != nil {
		return Result{}, fmt.Errorf("configure network: %w", err)
	}
	return result, nil
}

func (m *machine) configure(ctx context.Context) (Result, error) {
	outside, err := m.hostLink()
	if err != nil {
		return Result{}, err
	}
	name := outside.Attrs().Name
	if outside.Attrs().MasterIndex != 0 {
		return Result{}, fmt.Errorf("%s is in a bridge or zone: only a DHCP client in the machine gets an address there", name)
	}
	if err := m.up(); err != nil {
		return Result{}, err
	}
	host, err := m.waitIPv4(ctx, netns.None(), outside.Attrs().Index)
	if err != nil {
		return Result{}, explainWait(name, err)
	}
	has, err := m.addresses()
	if err != nil {
		return Result{}, err
	}
	address, err := guestAddress(host, has)
	if err != nil {
		return Result{}, err
	}
	if err := m.assign(address, host.Addr()); err != nil {
		return Result{}, err
	}
	return Result{Interface: guestLink, Address: address, Gateway: host.Addr()}, nil
}

// explainWait says what a host is likely to lack that does not give its end of
// the link an address in time.
func explainWait(name string, err error) error {
	err = fmt.Errorf("wait for systemd-networkd to give %s an IPv4 address: %w", name, err)
	if errors.Is(err, context.DeadlineExceeded) {
		err = fmt.Errorf("%w; systemd-networkd must run on the host and manage %s, by 80-container-ve.network or the like", err, name)
	}
	return err
}

// Addresses returns the addresses by which others can reach the machine whose
// first process is leader: those of host0 that are not link-local, IPv4 first.
// There may be none.
func Addresses(ctx context.Context, leader int) ([]netip.Prefix, error) {
	m, err := open(ctx, leader)
	if err != nil {
		return nil, fmt.Errorf("list addresses of machine: %w", err)
	}
	defer m.close()
	return m.addresses()
}

// WaitAddress waits until the machine whose first process is leader has given
// its host0 an IPv4 address that is not link-local, and returns it.
func WaitAddress(ctx context.Context, leader int) (netip.Prefix, error) {
	m, err := open(ctx, leader)
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("wait for address of machine: %w", err)
	}
	defer m.close()
	address, err := m.waitIPv4(ctx, m.namespace(), m.link.Attrs().Index)
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("wait for address of machine: %w", err)
	}
	return address, nil
}

// waitIPv4 returns the first global IPv4 address that a link has or gets in
// namespace; netns.None() is the host's.
func (m *machine) waitIPv4(ctx context.Context, namespace netns.NsHandle, link int) (netip.Prefix, error) {
	ctx, cancel := m.untilExit(ctx)
	defer cancel()
	var broken error // settled once updates is closed
	updates, done := make(chan netlink.AddrUpdate), make(chan struct{})
	err := netlink.AddrSubscribeWithOptions(updates, done, netlink.AddrSubscribeOptions{
		Namespace:     &namespace,
		ListExisting:  true,
		ErrorCallback: func(err error) { broken = err },
	})
	if err != nil {
		close(done)
		return netip.Prefix{}, fmt.Errorf("subscribe to addresses: %w", err)
	}
	defer func() {
		close(done)
		for range updates { // The sender does not look at done while it sends.
		}
	}()
	for {
		select {
		case <-ctx.Done():
			return netip.Prefix{}, context.Cause(ctx)
		case update, ok := <-updates:
			if !ok {
				return netip.Prefix{}, fmt.Errorf("watch addresses: %w", broken)
			}
			address, ok := global(netlink.Addr{IPNet: &update.LinkAddress, Scope: update.Scope, Flags: update.Flags})
			if ok && update.NewAddr && update.LinkIndex == link && address.Addr().Is4() {
				return address, nil
			}
		}
	}
}
