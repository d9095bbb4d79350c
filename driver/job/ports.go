package job

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/hashicorp/nomad/helper/pluginutils/hclutils"
	"github.com/hashicorp/nomad/nomad/structs"
	"github.com/hashicorp/nomad/plugins/drivers"

	"nomad-driver-nspawn/driver/schema"
	"nomad-driver-nspawn/nspawn/machine"
	"nomad-driver-nspawn/nspawn/network/links"
	"nomad-driver-nspawn/nspawn/network/ports"
)

type portOptions struct {
	Ports   []string           `codec:"ports"`
	PortMap hclutils.MapStrInt `codec:"port_map"`
}

var portSchema = schema.Options{
	"ports":    schema.Attr("ports", "list(string)"),
	"port_map": schema.Attr("port_map", "list(map(number))"),
}

// portOption is a port of the group's network that an option names.
type portOption struct {
	at, label string
	to        int // the port in the machine; 0 means the group's choice
}

func (c TaskConfig) wantedPorts() (list []portOption) {
	for i, label := range c.Ports {
		list = append(list, portOption{at: schema.At("ports", i), label: label})
	}
	for _, label := range slices.Sorted(maps.Keys(c.PortMap)) {
		list = append(list, portOption{at: fmt.Sprintf("port_map[%q]", label), label: label, to: c.PortMap[label]})
	}
	return list
}

// applyPorts adds the forwarded ports of the group's network.
func (c TaskConfig) applyPorts(in Input, network *machine.Network) error {
	var found schema.Mistakes
	list := c.wantedPorts()
	found.Unless(len(c.Ports) == 0 || len(c.PortMap) == 0, "port_map: cannot be combined with ports, whose `to` says the same: set one of them")
	switch {
	case len(list) == 0:
		return nil
	case network.Namespace != "":
		found.Refuse("ports: Nomad itself forwards the ports of the group's network")
	case network.Kind == "":
		found.Refuse("ports: a task in the host's network has them already, nothing is forwarded")
	case network.Kind != links.Veth && network.Kind != links.Zone && network.Kind != links.Bridge:
		found.Refuse("ports: the host does not reach a machine by network_%s, which has an address of its own: use that", network.Kind)
	}
	seen := map[string]bool{}
	for _, option := range list {
		found.Unless(!seen[option.label] || len(c.PortMap) > 0, "%s: %q stands here twice", option.at, option.label)
		seen[option.label] = true
		mapping, err := newMapping(in, option)
		if err != nil {
			found.Refuse("%s: %w", option.at, err)
		}
		network.Ports = append(network.Ports, mapping)
	}
	return found.Err()
}

// nomadPorts are the ports of HTTP, RPC and Serf (nomad/structs/config/ports.go). They are
// refused even if no agent listens on them now. Other ports are checked when the machine
// starts.
var nomadPorts = []int{4646, 4647, 4648}

func newMapping(in Input, option portOption) (ports.Mapping, error) {
	port, err := findPort(in.Task.Resources, option.label)
	if err != nil {
		return ports.Mapping{}, err
	}
	if slices.Contains(nomadPorts, port.Value) {
		return ports.Mapping{}, fmt.Errorf("port %q: %d is a port of Nomad itself: it would get what is meant for Nomad", option.label, port.Value)
	}
	to := option.to
	if to == 0 {
		to = max(port.To, 0)
	}
	if to == 0 {
		to = port.Value
	}
	const most = 1<<16 - 1
	if to < 0 || to > most || port.Value > most {
		return ports.Mapping{}, fmt.Errorf("port %q: %d is not a port, from 1 to %d", option.label, to, most)
	}
	mapping := ports.Mapping{Host: uint16(port.Value), Container: uint16(to)}
	if port.HostIP == "" || in.HostIP == nil {
		return mapping, nil
	}
	address, err := netip.ParseAddr(port.HostIP)
	if err != nil {
		return mapping, fmt.Errorf("port %q: address of the host: %w", option.label, err)
	}
	mapping.HostIP, err = in.HostIP(address)
	return mapping, err
}

func findPort(resources *drivers.Resources, label string) (structs.AllocatedPortMapping, error) {
	if resources == nil || resources.Ports == nil {
		return structs.AllocatedPortMapping{}, fmt.Errorf("port %q: the group's network block has no ports", label)
	}
	port, ok := resources.Ports.Get(label)
	if ok {
		return port, nil
	}
	var labels []string
	for _, port := range *resources.Ports {
		labels = append(labels, port.Label)
	}
	return port, fmt.Errorf("port %q is not in the group's network block, which has %s", label, strings.Join(labels, ", "))
}

// PortLabels returns the ports of a machine's network by label, for Nomad.
func (c TaskConfig) PortLabels(network machine.Network) map[string]int {
	labels := map[string]int{}
	for i, option := range c.wantedPorts() {
		labels[option.label] = int(network.Ports[i].Container)
	}
	return labels
}
