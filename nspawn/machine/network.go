package machine

import (
	"net/netip"

	"nomad-driver-nspawn/nspawn/network/links"
	"nomad-driver-nspawn/nspawn/network/names"
	"nomad-driver-nspawn/nspawn/network/ports"
	"nomad-driver-nspawn/nspawn/systemd"
)

// Network selects the machine's network. The zero value is the host's network.
type Network struct {
	// Namespace is the path of an existing network namespace to join.
	Namespace string
	// Kind gives the machine a network of its own, connected in this way. Of is the zone,
	// bridge or interface of the host that it is connected to.
	Kind links.Kind
	Of   string
	// Name is the name of the interface in the machine; "" selects nspawn's name.
	Name string
	// Extra lists additional veth links, HOST:MACHINE, which the driver leaves without
	// addresses (--network-veth-extra=).
	Extra []string
	// Ports are forwarded from the host. They need a Kind that the host can reach.
	Ports []ports.Mapping
}

// Connected reports whether the machine has a link to the host that the driver
// configures before the payload begins. A booted guest configures its own.
func (s Spec) Connected() bool { return s.Network.Kind != "" && s.Mode != Boot }

// args returns the network arguments of nspawn. nspawn creates the links of guests that
// configure their own network. The links of commands are created later, while the shim
// waits at the gate.
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
	case n.Kind == links.Zone: // the driver makes and removes it: nspawn's lock of zones is on the host
		return append(args, "--network-bridge="+links.ZoneBridge(n.Of))
	}
	of := n.Of
	if n.Name != "" {
		of += ":" + n.Name
	}
	return append(args, "--network-"+string(n.Kind)+"="+of)
}

// properties returns the property with which the unit joins a given network namespace.
// nspawn itself cannot join one in a user namespace before systemd 262 (systemd#36363).
func (n Network) properties() []systemd.Property {
	if n.Namespace == "" {
		return nil
	}
	return []systemd.Property{systemd.NewProperty("NetworkNamespacePath", n.Namespace)}
}

// Link returns how the machine is to be connected.
func (s Spec) Link() links.Spec {
	return links.Spec{Machine: s.Machine, Kind: s.Network.Kind, Of: s.Network.Of, Name: s.Network.Name}
}

// Names are the files with which a machine resolves names. They are files of the host
// that the machine can read, and the driver changes them while the machine runs.
type Names struct {
	Hosts    *names.Hosts    // content of /etc/hosts; nil keeps the image's file
	Resolver *names.Resolver // content of /etc/resolv.conf; nil leaves it to ResolvConf
}

// Files returns the files as they are before the machine is connected.
func (n Names) Files() []File {
	var files []File
	if n.Hosts != nil {
		files = append(files, File{Path: HostsFile, Content: n.Hosts.String()})
	}
	if n.Resolver != nil {
		text, _ := n.Resolver.Text() // The start reports a resolver without servers.
		files = append(files, File{Path: ResolvFile, Content: text})
	}
	return files
}

// HostsFile and ResolvFile are the paths of the files in the machine.
const (
	HostsFile  = "/etc/hosts"
	ResolvFile = "/etc/resolv.conf"
)

// Connected returns the names of a machine with the connection c.
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
