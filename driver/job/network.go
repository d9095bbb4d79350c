package job

import (
	"fmt"
	"strings"

	"nomad-driver-nspawn/driver/operator"
	"nomad-driver-nspawn/driver/schema"
	"nomad-driver-nspawn/nspawn/machine"
	"nomad-driver-nspawn/nspawn/network/links"
)

type networkOptions struct {
	NetworkVeth      *bool    `codec:"network_veth"`
	NetworkZone      string   `codec:"network_zone"`
	NetworkBridge    string   `codec:"network_bridge"`
	NetworkMacvlan   string   `codec:"network_macvlan"`
	NetworkIpvlan    string   `codec:"network_ipvlan"`
	NetworkInterface string   `codec:"network_interface"`
	NetworkVethExtra []string `codec:"network_veth_extra"`
}

var networkSchema = schema.Options{
	"network_veth":       schema.Attr("network_veth", "bool"),
	"network_zone":       schema.Attr("network_zone", "string"),
	"network_bridge":     schema.Attr("network_bridge", "string"),
	"network_macvlan":    schema.Attr("network_macvlan", "string"),
	"network_ipvlan":     schema.Attr("network_ipvlan", "string"),
	"network_interface":  schema.Attr("network_interface", "string"),
	"network_veth_extra": schema.Attr("network_veth_extra", "list(string)"),
}

// networkOption is an option that connects a machine to something of the host. Some values
// may end with the name of the interface in the machine.
type networkOption struct {
	name, value string
	kind        links.Kind
	named       bool
}

func (c TaskConfig) networks() (set []networkOption) {
	for _, option := range []networkOption{
		{"network_zone", c.NetworkZone, links.Zone, false},
		{"network_bridge", c.NetworkBridge, links.Bridge, false},
		{"network_macvlan", c.NetworkMacvlan, links.Macvlan, true},
		{"network_ipvlan", c.NetworkIpvlan, links.Ipvlan, true},
		{"network_interface", c.NetworkInterface, links.Interface, true},
	} {
		if option.value != "" {
			set = append(set, option)
		}
	}
	return set
}

// parse returns what the machine is connected to, and the name of the interface in the
// machine, or "" for nspawn's choice.
func (o networkOption) parse() (of, name string, err error) {
	of, name, given := strings.Cut(o.value, ":")
	switch {
	case given && !o.named:
		return "", "", fmt.Errorf("%s: %q has a colon: the interface is host0 in the machine", o.name, o.value)
	case o.kind == links.Zone && !schema.ZoneName.MatchString(of):
		return "", "", fmt.Errorf("%s: %q is not a name of at most 12 letters, digits, _ and -", o.name, of)
	case !schema.InterfaceName.MatchString(of), given && !schema.InterfaceName.MatchString(name):
		return "", "", fmt.Errorf("%s: %q is not the name of an interface, of at most 15 letters, digits, dots, _ and -", o.name, o.value)
	}
	return of, name, nil
}

// withDefaultNetwork asks for the operator's network if the job asks for none.
func (c TaskConfig) withDefaultNetwork(policy operator.Policy) TaskConfig {
	if c.NetworkVeth != nil || len(c.networks()) > 0 {
		return c
	}
	kind, of := policy.DefaultNetwork()
	switch kind {
	case "host":
		c.NetworkVeth = new(bool)
	case "zone":
		c.NetworkZone = of
	case "bridge":
		c.NetworkBridge = of
	}
	return c
}

// applyNetwork uses the group's network if the group has its own, otherwise a veth link or
// what the job asks for.
func (c TaskConfig) applyNetwork(in Input, spec *machine.Spec) error {
	if isolation := in.Task.NetworkIsolation; isolation != nil {
		spec.Network.Namespace = isolation.Path
	}
	if spec.Network.Namespace == "" {
		c = c.withDefaultNetwork(in.Policy)
	}
	var found schema.Mistakes
	network, set := &spec.Network, c.networks()
	veth := c.NetworkVeth != nil && *c.NetworkVeth
	switch {
	case network.Namespace != "":
		const given = "%s: the group's network mode gives the task a network; leave the mode at host for another"
		for _, option := range set {
			found.Refuse(given, option.name)
		}
		found.Unless(!veth, given, "network_veth")
		found.Unless(len(c.NetworkVethExtra) == 0, given, "network_veth_extra")
	case len(set) > 0:
		found.Add(c.applyLink(in, network, set, veth))
	case c.NetworkVeth == nil || veth:
		network.Kind = links.Veth
	default:
		found.Add(in.Policy.HostNetwork())
		found.Unless(len(c.NetworkVethExtra) == 0, "network_veth_extra: needs a network of the machine's own, not network_veth = false")
	}
	found.Add(c.applyVethExtra(in, network), c.applyPorts(in, network))
	return found.Err()
}

// applyLink applies the one option that says how the machine is connected.
func (c TaskConfig) applyLink(in Input, network *machine.Network, set []networkOption, veth bool) error {
	var found schema.Mistakes
	for _, other := range set[1:] {
		found.Refuse("%s: a task has one network, and %s is set: set one of them", other.name, set[0].name)
	}
	// nspawn and the older driver accept a zone or bridge together with --network-veth,
	// which these imply.
	found.Unless(!veth || set[0].kind == links.Zone || set[0].kind == links.Bridge, "network_veth: a task has one network, and %s is set: set one of them", set[0].name)
	network.Kind = set[0].kind
	of, name, err := set[0].parse()
	if err != nil {
		found.Add(err)
		return found.Err()
	}
	network.Of, network.Name = of, name
	found.Add(in.Policy.Network(set[0].name, set[0].kind, of))
	return found.Err()
}

// applyVethExtra adds veth links that nobody configures. The job chooses their names on
// the host, as far as the operator allows them.
func (c TaskConfig) applyVethExtra(in Input, network *machine.Network) error {
	var found schema.Mistakes
	for i, extra := range c.NetworkVethExtra {
		option := networkOption{name: schema.At("network_veth_extra", i), value: extra, kind: links.Interface, named: true}
		of, _, err := option.parse()
		if err == nil {
			err = in.Policy.Network(option.name, option.kind, of)
		}
		found.Add(err)
	}
	network.Extra = c.NetworkVethExtra
	return found.Err()
}
