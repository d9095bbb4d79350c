package nspawn

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"time"

	"nomad-driver-nspawn/nspawn/network"
)

// vethTimeout bounds the wait for systemd-networkd, which needs about 50 ms.
const vethTimeout = 15 * time.Second

// ConfigureVeth gives the machine's end of its veth pair an address and a
// route, for a machine in which nothing does so itself: every one that is not
// booted. The address is invalid if the machine has ended meanwhile.
func (m *Manager) ConfigureVeth(ctx context.Context, machine string) (netip.Addr, error) {
	ctx, cancel := context.WithTimeout(ctx, vethTimeout)
	defer cancel()
	leader, err := m.leader(ctx, machine)
	if err == nil {
		var result network.Result
		if result, err = network.Configure(ctx, leader.pid); err == nil {
			return result.Address.Addr(), nil
		}
	}
	if errors.Is(err, network.ErrExited) || errors.Is(err, os.ErrProcessDone) {
		return netip.Addr{}, nil
	}
	return netip.Addr{}, fmt.Errorf("configure the veth pair of machine %s: %w", machine, err)
}
