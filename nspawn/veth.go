package nspawn

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	"nomad-driver-nspawn/nspawn/network"
)

// vethTimeout bounds the wait for systemd-networkd, which needs about 50 ms.
const vethTimeout = 15 * time.Second

// ConfigureVeth gives the machine's end of its veth pair an address and a
// route, for a machine in which nothing does so itself: every one that is not
// booted. It is a step, for the machine's payload waits meanwhile.
func ConfigureVeth(ctx context.Context, waiting Waiting) (netip.Addr, error) {
	ctx, cancel := context.WithTimeout(ctx, vethTimeout)
	defer cancel()
	result, err := network.Configure(ctx, waiting.Leader)
	if err != nil {
		return netip.Addr{}, fmt.Errorf("configure the veth pair: %w", err)
	}
	return result.Address.Addr(), nil
}

// VethAddress returns the address that a machine was given, for one that runs already. It is
// invalid if the machine has none or has ended.
func (m *Manager) VethAddress(ctx context.Context, machine string) netip.Addr {
	ctx, cancel := context.WithTimeout(ctx, vethTimeout)
	defer cancel()
	leader, err := m.leader(ctx, machine)
	if err != nil {
		return netip.Addr{}
	}
	list, err := network.Addresses(ctx, leader.pid)
	if err != nil || len(list) == 0 {
		return netip.Addr{}
	}
	return list[0].Addr()
}
