package driver

import (
	"context"
	"net/netip"

	"github.com/hashicorp/nomad/plugins/drivers"

	"nomad-driver-nspawn/driver/job"
	"nomad-driver-nspawn/nspawn"
)

// networkStep completes the network of a machine before its payload begins, and reports
// its address. A booted machine configures itself, which may take seconds and is not
// waited for.
type networkStep struct {
	spec    nspawn.Spec
	address netip.Addr
}

func newNetworkStep(spec nspawn.Spec) *networkStep { return &networkStep{spec: spec} }

func (n *networkStep) needed() bool { return n.spec.Network.Veth && n.spec.Mode != nspawn.Boot }

// configure is a nspawn.Step.
func (n *networkStep) configure(ctx context.Context, waiting nspawn.Waiting) (err error) {
	if n.needed() {
		n.address, err = nspawn.ConfigureVeth(ctx, waiting)
	}
	return err
}

// result is what Nomad is told, nil if there is no address. A machine that was adopted
// may have got its address by another plugin.
func (n *networkStep) result(ctx context.Context, d *Driver, task job.TaskConfig) *drivers.DriverNetwork {
	if n.needed() && !n.address.IsValid() {
		n.address = d.machines.VethAddress(ctx, n.spec.Machine)
	}
	if !n.address.IsValid() {
		return nil
	}
	network := &drivers.DriverNetwork{IP: n.address.String(), PortMap: map[string]int{}}
	for i, port := range n.spec.Network.Ports {
		network.PortMap[task.Ports[i]] = port.Container
	}
	return network
}
