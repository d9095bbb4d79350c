package job

import (
	"maps"
	"regexp"
	"slices"
	"strings"

	"nomad-driver-nspawn/driver/schema"
	"nomad-driver-nspawn/nspawn/machine"
)

// sysctlOptions set parameters of the kernel for the machine alone.
type sysctlOptions struct {
	Sysctl map[string]string `codec:"sysctl"`
}

var sysctlSchema = schema.Options{"sysctl": schema.StringMap("sysctl")}

// sysctlName has no part that leads out of /proc/sys.
var sysctlName = regexp.MustCompile(`^[a-zA-Z0-9_-]+(\.[a-zA-Z0-9_-]+)+$`)

// ipcSysctl is for parameters of IPC namespaces (ipc_namespaces(7)).
var ipcSysctl = regexp.MustCompile(`^(kernel\.(msgmax|msgmnb|msgmni|sem|shmall|shmmax|shmmni|shm_rmid_forced)|fs\.mqueue\..*)$`)

// networkSysctls begin the names of parameters of network namespaces.
const networkSysctls = "net."

func (c TaskConfig) validateSysctls() error {
	var found schema.Mistakes
	for _, name := range slices.Sorted(maps.Keys(c.Sysctl)) {
		value := c.Sysctl[name]
		if !sysctlName.MatchString(name) {
			found.Refuse("sysctl.%s: want the name of a parameter as sysctl(8) has it, as net.core.somaxconn", name)
			continue
		}
		found.Unless(ipcSysctl.MatchString(name) || strings.HasPrefix(name, networkSysctls),
			"sysctl.%s: is a parameter of the whole client; a container has net.*, fs.mqueue.* and those of System V IPC (kernel.shmmax and the like) of its own", name)
		found.Unless(value != "" && !strings.ContainsAny(value, "\n\x00"), "sysctl.%s: %q is not a value", name, value)
	}
	return found.Err()
}

func (c TaskConfig) applySysctls(in Input, spec *machine.Spec) error {
	var found schema.Mistakes
	hasHostNetwork := spec.Network.Kind == "" && spec.Network.Namespace == ""
	for _, name := range slices.Sorted(maps.Keys(c.Sysctl)) {
		found.Unless(!hasHostNetwork || !strings.HasPrefix(name, networkSysctls), "sysctl.%s: would change the client's own network: give the task another one", name)
		found.Add(in.Policy.Sysctl(name))
	}
	spec.Sysctls = c.Sysctl
	return found.Err()
}
