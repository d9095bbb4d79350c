package job

import (
	"regexp"
	"slices"

	"nomad-driver-nspawn/nspawn/machine"
)

type isolationOptions struct {
	Capability      []string `codec:"capability"`
	UserNamespacing bool     `codec:"user_namespacing"`
}

var isolationSchema = options{
	"capability":       attr("capability", "list(string)"),
	"user_namespacing": withDefault("user_namespacing", "bool", true),
}

var capability = regexp.MustCompile(`^(CAP_[A-Z_]+|all)$`)

func (c TaskConfig) validateIsolation() error {
	var found mistakes
	for i, name := range c.Capability {
		found.add(matches(at("capability", i), name, capability, "a name of capabilities(7), as CAP_NET_ADMIN, or all"))
	}
	return found.err()
}

func (c TaskConfig) applyIsolation(in Input, spec *machine.Spec) error {
	spec.Capabilities = slices.Sorted(slices.Values(c.Capability))
	spec.Root.UserNamespace = c.UserNamespacing
	var found mistakes
	found.add(in.Policy.Capabilities(c.Capability))
	if !c.UserNamespacing {
		found.add(in.Policy.HostUsers())
	}
	return found.err()
}
