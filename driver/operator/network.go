package operator

import (
	"fmt"
	"strings"

	"nomad-driver-nspawn/driver/schema"
	"nomad-driver-nspawn/nspawn/network/links"
)

// DefaultNetwork returns the network of a task that asks for none: "veth", "host", or
// "zone" or "bridge" with the name of it. That network is allowed.
func (p Policy) DefaultNetwork() (kind, of string) {
	if p.rules.DefaultNetwork == nil {
		return "veth", ""
	}
	kind, of, _ = strings.Cut(*p.rules.DefaultNetwork, ":")
	return kind, of
}

func checkDefaultNetwork(network *string) error {
	if network == nil {
		return nil
	}
	switch kind, of, named := strings.Cut(*network, ":"); {
	case (kind == "veth" || kind == "host") && !named,
		kind == "zone" && schema.ZoneName.MatchString(of),
		kind == "bridge" && schema.InterfaceName.MatchString(of):
		return nil
	}
	return fmt.Errorf("default_network: %q is none of veth, host, zone:NAME and bridge:NAME", *network)
}

// HostNetwork checks a machine in the host's network namespace.
func (p Policy) HostNetwork() error {
	if kind, _ := p.DefaultNetwork(); kind == "host" {
		return nil
	}
	return refusal{
		what:   "network_veth: false gives the job the host's network, with what listens on its loopback device and all abstract sockets",
		option: "allow_host_network",
		or:     `the group have a network of its own, as with mode = "bridge"`,
	}.unless(p.rules.AllowHostNetwork)
}

// Network checks a machine that is connected to something of the host.
func (p Policy) Network(option string, kind links.Kind, of string) error {
	rule, allowed := "allow_network_interfaces", p.rules.AllowNetworkInterfaces
	switch kind {
	case links.Zone:
		rule, allowed = "allow_network_zones", p.rules.AllowNetworkZones
	case links.Bridge:
		rule, allowed = "allow_network_bridges", p.rules.AllowNetworkBridges
	}
	standard, standardOf := p.DefaultNetwork()
	if matchesAny(allowed, of) || string(kind) == standard && of == standardOf {
		return nil
	}
	return fmt.Errorf("%s: %q is not among what the operator allows with %s in the plugin's config (%s)", option, of, rule, listed(allowed))
}

func (p policyOptions) networkMistakes() (found schema.Mistakes) {
	found.Add(checkDefaultNetwork(p.DefaultNetwork))
	for _, rule := range []struct {
		name     string
		patterns []string
	}{
		{"allow_network_bridges", p.AllowNetworkBridges},
		{"allow_network_interfaces", p.AllowNetworkInterfaces},
		{"allow_network_zones", p.AllowNetworkZones},
	} {
		for i, pattern := range rule.patterns {
			found.Add(checkPattern(schema.At(rule.name, i), pattern))
		}
	}
	return found
}
