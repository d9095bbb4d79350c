package nspawn

import (
	"context"

	"nomad-driver-nspawn/nspawn/network"
)

// makeNetwork is for a network namespace that is given.
func (m *Manager) makeNetwork(_ context.Context, d *draft) error {
	if d.spec.Network.Namespace == "" {
		return nil
	}
	return network.Prepare(d.spec.Network.Namespace)
}
