package job

import (
	"fmt"
	"slices"
	"strings"

	"github.com/hashicorp/nomad/plugins/drivers"

	"nomad-driver-nspawn/nspawn/machine"
)

type networkOptions struct {
	NetworkVeth *bool    `codec:"network_veth"`
	Ports       []string `codec:"ports"`
}

var networkSchema = options{
	"network_veth": attr("network_veth", "bool"),
	"ports":        attr("ports", "list(string)"),
}

// applyNetwork uses the group's network if it has one of its own, else a veth
// pair, unless the job asks for the host's network.
func (c TaskConfig) applyNetwork(in Input, spec *machine.Spec) error {
	var found mistakes
	network := &spec.Network
	if isolation := in.Task.NetworkIsolation; isolation != nil {
		network.Namespace = isolation.Path
	}
	if network.Namespace == "" {
		network.Veth = c.NetworkVeth == nil || *c.NetworkVeth
		if !network.Veth {
			found.add(in.Policy.HostNetwork())
		}
	} else {
		found.unless(c.NetworkVeth == nil || !*c.NetworkVeth, "network_veth: the group's network mode gives the task a network; use mode host for a veth of its own")
	}
	found.unless(len(c.Ports) == 0 || network.Veth, "ports: are forwarded only with network_veth; Nomad itself forwards the ports of a bridge network")
	for i, label := range c.Ports {
		port, err := newPort(in.Task.Resources, label)
		if err != nil {
			found.refuse("%s: %w", at("ports", i), err)
		}
		network.Ports = append(network.Ports, port)
	}
	return found.err()
}

// nomadPorts are those of HTTP, RPC and Serf (nomad/structs/config/ports.go). They
// are refused even where no agent listens now. Other ports are looked at when the
// machine is started.
var nomadPorts = []int{4646, 4647, 4648}

func newPort(resources *drivers.Resources, label string) (machine.Port, error) {
	if resources == nil || resources.Ports == nil {
		return machine.Port{}, fmt.Errorf("port %q: the group's network block has no ports", label)
	}
	mapping, ok := resources.Ports.Get(label)
	if !ok {
		var labels []string
		for _, port := range *resources.Ports {
			labels = append(labels, port.Label)
		}
		return machine.Port{}, fmt.Errorf("port %q is not in the group's network block, which has %s", label, strings.Join(labels, ", "))
	}
	if slices.Contains(nomadPorts, mapping.Value) {
		return machine.Port{}, fmt.Errorf("port %q: %d is a port of Nomad itself: it would get what is meant for Nomad", label, mapping.Value)
	}
	port := machine.Port{Host: mapping.Value, Container: mapping.To}
	if port.Container <= 0 {
		port.Container = port.Host
	}
	return port, nil
}
