package job

import (
	_ "embed"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	"nomad-driver-nspawn/driver/operator"
	"nomad-driver-nspawn/driver/schema"
	"nomad-driver-nspawn/nspawn/machine"
)

// isolationOptions say what a task may do to the kernel.
type isolationOptions struct {
	CapAdd           []string          `codec:"cap_add"`
	CapDrop          []string          `codec:"cap_drop"`
	Capability       []string          `codec:"capability"`
	NoNewPrivileges  bool              `codec:"no_new_privileges"`
	Privileged       bool              `codec:"privileged"`
	Sysctl           map[string]string `codec:"sysctl"`
	SystemCallFilter []string          `codec:"system_call_filter"`
	UserNamespacing  bool              `codec:"user_namespacing"`
}

var isolationSchema = schema.Options{
	"cap_add":            schema.Attr("cap_add", "list(string)"),
	"cap_drop":           schema.Attr("cap_drop", "list(string)"),
	"capability":         schema.Attr("capability", "list(string)"),
	"no_new_privileges":  schema.Attr("no_new_privileges", "bool"),
	"privileged":         schema.Attr("privileged", "bool"),
	"sysctl":             schema.StringMap("sysctl"),
	"system_call_filter": schema.Attr("system_call_filter", "list(string)"),
	"user_namespacing":   schema.WithDefault("user_namespacing", "bool", true),
}

func (c TaskConfig) validateIsolation() error {
	var found schema.Mistakes
	for _, option := range []struct {
		name string
		list []string
	}{{"cap_add", c.CapAdd}, {"cap_drop", c.CapDrop}, {"capability", c.Capability}} {
		for i, name := range option.list {
			found.Add(validateCapability(schema.At(option.name, i), name))
		}
	}
	both := slices.DeleteFunc(capabilityNames(c.CapDrop), func(name string) bool {
		return name == machine.AllCapabilities || !slices.Contains(c.kept(), name)
	})
	found.Unless(len(both) == 0, "cap_drop: %s is in cap_add or capability, too", strings.Join(both, ", "))
	// With both, the container has no capabilities at all (seen with systemd 252).
	found.Unless(!slices.Contains(capabilityNames(c.CapDrop), machine.AllCapabilities) || len(c.kept()) == 0,
		"cap_drop: all cannot be combined with cap_add or capability: name the capabilities to drop")
	for i, name := range c.SystemCallFilter {
		found.Add(schema.NotEmpty(schema.At("system_call_filter", i), name),
			systemCall(schema.At("system_call_filter", i), name))
	}
	for _, name := range slices.Sorted(maps.Keys(c.Sysctl)) {
		found.Add(machine.CheckSysctl(name, c.Sysctl[name]))
	}
	found.Unless(!c.Privileged || !c.NoNewPrivileges, "no_new_privileges: cannot be combined with privileged")
	found.Unless(!c.Privileged || len(c.CapDrop) == 0, "cap_drop: cannot be combined with privileged")
	return found.Err()
}

func validateCapability(at, name string) error {
	var found schema.Mistakes
	full := capabilityNames([]string{name})[0]
	found.Unless(full == machine.AllCapabilities || slices.Contains(machine.Capabilities, full),
		"%s: %q is not a name of capabilities(7), as CAP_NET_ADMIN or net_admin, or all", at, name)
	return found.Err()
}

// capabilityNames returns names in nspawn's form, sorted. docker also accepts net_admin
// for CAP_NET_ADMIN.
func capabilityNames(names []string) (full []string) {
	for _, name := range names {
		name = strings.ToUpper(name)
		switch {
		case name == "ALL":
			name = machine.AllCapabilities
		case !strings.HasPrefix(name, "CAP_"):
			name = "CAP_" + name
		}
		full = append(full, name)
	}
	slices.Sort(full)
	return slices.Compact(full)
}

// drops reports whether the job drops a capability.
func (c TaskConfig) drops(name string) bool {
	dropped := capabilityNames(c.CapDrop)
	return slices.Contains(dropped, name) || slices.Contains(dropped, machine.AllCapabilities) && !slices.Contains(c.kept(), name)
}

// kept returns the capabilities that the job adds to nspawn's own.
func (c TaskConfig) kept() []string { return capabilityNames(slices.Concat(c.Capability, c.CapAdd)) }

func (c TaskConfig) applyIsolation(in Input, spec *machine.Spec) error {
	var found schema.Mistakes
	spec.Capabilities = c.kept()
	spec.Root.UserNamespace = c.UserNamespacing && !c.Privileged
	spec.Isolation = machine.Isolation{
		DropCapabilities: capabilityNames(c.CapDrop),
		NoNewPrivileges:  c.NoNewPrivileges || in.Policy.NoNewPrivileges(),
		SystemCallFilter: c.SystemCallFilter,
		Privileged:       c.Privileged,
	}
	found.Add(in.Policy.Capabilities(spec.Capabilities))
	for _, name := range []string{"CAP_SETUID", "CAP_SETGID"} {
		found.Unless(spec.User == "" || !c.drops(name), "cap_drop: without %s the command cannot be started as user %q: keep it, or drop it in the command", name, spec.User)
	}
	if !c.UserNamespacing {
		found.Add(in.Policy.HostUsers())
	}
	if c.Privileged {
		spec.Capabilities, spec.Isolation.NoNewPrivileges = []string{machine.AllCapabilities}, false
		found.Add(in.Policy.Privileged())
	}
	for _, name := range c.SystemCallFilter {
		if !strings.HasPrefix(name, "~") {
			found.Add(in.Policy.SystemCall(name))
		}
	}
	found.Add(c.applySysctls(in, spec))
	return found.Err()
}

// applySysctls sets parameters of the kernel for the namespaces of the machine.
func (c TaskConfig) applySysctls(in Input, spec *machine.Spec) error {
	network := operator.OwnNetwork
	switch {
	case spec.Network.Namespace != "":
		network = operator.GroupNetwork
	case spec.Network.Kind == "":
		network = operator.HostNetwork
	}
	var found schema.Mistakes
	for _, name := range slices.Sorted(maps.Keys(c.Sysctl)) {
		found.Add(in.Policy.Sysctl(name, c.Sysctl[name], network))
	}
	spec.Sysctls = c.Sysctl
	return found.Err()
}

// systemCallNames has the system calls of Linux 6.12, of all architectures that the driver
// is built for, and the groups of systemd 252, one name per line, sorted. systemd-nspawn
// silently ignores names that it does not know.
//
//go:embed system_calls.txt
var systemCallText string

var systemCallNames = sync.OnceValue(func() []string { return strings.Fields(systemCallText) })

// systemCall checks the name of a system call to allow or, with "~", to forbid.
func systemCall(at, name string) error {
	_, known := slices.BinarySearch(systemCallNames(), strings.TrimPrefix(name, "~"))
	if name == "" || known {
		return nil
	}
	return fmt.Errorf("%s: %q is neither a system call nor a group of systemd.exec(5), as @keyring, or one to forbid, as ~@clock", at, name)
}
