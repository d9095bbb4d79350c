package driver

import (
	"context"

	"github.com/hashicorp/nomad/plugins/drivers"

	"nomad-driver-nspawn/driver/job"
	"nomad-driver-nspawn/nspawn"
)

// configureNetwork completes the network of a machine that is up and tells
// Nomad its address. A booted machine configures itself, which may take
// seconds and is not waited for.
func (d *Driver) configureNetwork(ctx context.Context, task job.TaskConfig, spec nspawn.Spec) (*drivers.DriverNetwork, error) {
	if !spec.Network.Veth || spec.Mode == nspawn.Boot {
		return nil, nil
	}
	address, err := d.machines.ConfigureVeth(ctx, spec.Machine)
	if err != nil || !address.IsValid() {
		return nil, err
	}
	network := &drivers.DriverNetwork{IP: address.String(), PortMap: map[string]int{}}
	for i, port := range spec.Network.Ports {
		network.PortMap[task.Ports[i]] = port.Container
	}
	return network, nil
}
