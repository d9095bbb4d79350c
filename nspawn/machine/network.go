package machine

import (
	"cmp"
	"fmt"
	"slices"

	"nomad-driver-nspawn/nspawn/systemd"
)

// Network says which network the machine sees. The zero value is the host's.
type Network struct {
	// Namespace is the path of an existing network namespace to run in.
	Namespace string
	// Veth gives the machine a network of its own, connected to the host by
	// a veth pair (--network-veth).
	Veth bool
	// Ports are forwarded from the host; they need Veth.
	Ports []Port
}

// Port forwards a port of the host, for TCP and UDP.
type Port struct {
	Host, Container int
}

func (n Network) args() []string {
	if !n.Veth {
		return nil
	}
	args := []string{"--network-veth"}
	ports := slices.SortedFunc(slices.Values(n.Ports), func(a, b Port) int { return cmp.Compare(a.Host, b.Host) })
	for _, p := range ports {
		for _, protocol := range []string{"tcp", "udp"} {
			args = append(args, fmt.Sprintf("--port=%s:%d:%d", protocol, p.Host, p.Container))
		}
	}
	return args
}

// properties: a given network namespace is joined by the unit, not by nspawn,
// which fails to do so in a user namespace before 262 (systemd#36363).
func (n Network) properties() []systemd.Property {
	if n.Namespace == "" {
		return nil
	}
	return []systemd.Property{systemd.NewProperty("NetworkNamespacePath", n.Namespace)}
}
