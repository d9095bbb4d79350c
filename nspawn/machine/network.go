package machine

import (
	"net/netip"

	"nomad-driver-nspawn/nspawn/network/links"
	"nomad-driver-nspawn/nspawn/network/names"
	"nomad-driver-nspawn/nspawn/network/ports"
	"nomad-driver-nspawn/nspawn/systemd"
)

// Network says which network the machine sees. The zero value is the host's.
type Network struct {
	// Namespace is the path of an existing network namespace to run in.
	Namespace string
	// Kind gives the machine a network of its own, which is connected that way, and
	// Of is the zone, bridge or interface of the host.
	Kind links.Kind
	Of   string
	// Name is that of the interface in the machine; "" is what nspawn calls it.
	Name string
	// Extra are further veth links, HOST:MACHINE, to which nobody gives an address
	// (--network-veth-extra=).
	Extra []string
	// Ports are forwarded from the host. They need a Kind that the host reaches.
	Ports []ports.Mapping
}

// Connected reports whether the machine has a link to the host that the driver
// configures before the payload begins. A booted guest configures its own.
func (s Spec) Connected() bool { return s.Network.Kind != "" && s.Mode != Boot }

// args: nspawn makes the links of guests that configure them. Those of a command are
// made when it waits at the gate.
func (n Network) args(mode Mode) (args []string) {
	for _, extra := range n.Extra {
		args = append(args, "--network-veth-extra="+extra)
	}
	switch {
	case n.Kind == "":
		return args
	case mode != Boot:
		return append(args, "--private-network")
	case n.Kind == links.Veth:
		return append(args, "--network-veth")
	}
	of := n.Of
	if n.Name != "" {
		of += ":" + n.Name
	}
	return append(args, "--network-"+string(n.Kind)+"="+of)
}

// properties: a given network namespace is joined by the unit, not by nspawn,
// which fails to do so in a user namespace before 262 (systemd#36363).
func (n Network) properties() []systemd.Property {
	if n.Namespace == "" {
		return nil
	}
	return []systemd.Property{systemd.NewProperty("NetworkNamespacePath", n.Namespace)}
}

// Link is how the machine is to be connected.
func (s Spec) Link() links.Spec {
	return links.Spec{Machine: s.Machine, Kind: s.Network.Kind, Of: s.Network.Of, Name: s.Network.Name}
}

// Names are the files by which a machine finds names. They are files of the host
// that the machine can read, and change while it runs.
type Names struct {
	Hosts    *names.Hosts    // of /etc/hosts; nil leaves what the image has
	Resolver *names.Resolver // of /etc/resolv.conf; nil leaves it to ResolvConf
}

// Files are the texts of the files before the machine is connected, by their paths.
func (n Names) Files() []File {
	var files []File
	if n.Hosts != nil {
		files = append(files, File{Path: HostsFile, Content: n.Hosts.String()})
	}
	if n.Resolver != nil {
		text, _ := n.Resolver.Text() // What it lacks, the start tells.
		files = append(files, File{Path: ResolvFile, Content: text})
	}
	return files
}

// Paths of Names in the machine.
const (
	HostsFile  = "/etc/hosts"
	ResolvFile = "/etc/resolv.conf"
)

// Connected returns the names of a machine that has been connected.
func (n Names) Connected(c links.Connection) Names {
	if n.Hosts != nil {
		hosts := *n.Hosts
		hosts.Gateways = c.Gateways
		for _, address := range []netip.Prefix{c.IPv4, c.IPv6} {
			if address.IsValid() {
				hosts.Addresses = append(hosts.Addresses, address.Addr())
			}
		}
		n.Hosts = &hosts
	}
	if n.Resolver != nil {
		resolver := n.Resolver.With(c.Servers, c.Searches)
		n.Resolver = &resolver
	}
	return n
}
