package operator

import (
	"fmt"

	"nomad-driver-nspawn/driver/schema"
	"nomad-driver-nspawn/nspawn/network/links"
)

// HostNetwork answers for a machine in the host's network namespace.
func (p Policy) HostNetwork() error {
	return refusal{
		what:   "network_veth: false gives the job the host's network, with what listens on its loopback device and all abstract sockets",
		option: "allow_host_network",
		or:     `the group have a network of its own, as with mode = "bridge"`,
	}.unless(p.rules.AllowHostNetwork)
}

// Network answers for a machine that is connected by something of the host.
func (p Policy) Network(option string, kind links.Kind, of string) error {
	rule, allowed := "allow_network_interfaces", p.rules.AllowNetworkInterfaces
	switch kind {
	case links.Zone:
		rule, allowed = "allow_network_zones", p.rules.AllowNetworkZones
	case links.Bridge:
		rule, allowed = "allow_network_bridges", p.rules.AllowNetworkBridges
	}
	if matchesAny(allowed, of) {
		return nil
	}
	return fmt.Errorf("%s: %q is not among what the operator allows with %s in the plugin's config (%s)", option, of, rule, listed(allowed))
}

func (p policyOptions) networkMistakes() (found schema.Mistakes) {
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
