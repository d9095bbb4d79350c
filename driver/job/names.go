package job

import (
	"regexp"

	"nomad-driver-nspawn/nspawn/machine"
)

type nameOptions struct {
	Hostname string `codec:"hostname"`
}

var nameSchema = options{"hostname": attr("hostname", "string")}

var hostName = regexp.MustCompile(`^[a-zA-Z0-9]([a-zA-Z0-9-]*[a-zA-Z0-9])?(\.[a-zA-Z0-9]([a-zA-Z0-9-]*[a-zA-Z0-9])?)*$`)

const maxHostname = 64 // HOST_NAME_MAX, see gethostname(2)

func (c TaskConfig) validateNames() error {
	var found mistakes
	found.add(matches("hostname", c.Hostname, hostName, "a host name of letters, digits, - and ."))
	found.unless(len(c.Hostname) <= maxHostname, "hostname: %q is longer than %d characters", c.Hostname, maxHostname)
	return found.err()
}

func (c TaskConfig) applyNames(_ Input, spec *machine.Spec) error {
	spec.Hostname = c.Hostname
	if c.Ephemeral && spec.Mode != machine.Boot {
		spec.Root.Files = append(spec.Root.Files, machine.File{Path: "/etc/hosts", Content: hosts(c.Hostname), Keep: true})
	}
	return nil
}

// hosts returns an /etc/hosts for images without one, whose "localhost" would go
// to a DNS server.
func hosts(hostname string) string {
	content := "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n"
	if hostname != "" {
		content += "127.0.1.1 " + hostname + "\n"
	}
	return content
}
