package job

import (
	"strings"

	"github.com/hashicorp/nomad/plugins/drivers"

	"nomad-driver-nspawn/nspawn/machine"
)

type dnsOptions struct {
	ResolvConf string `codec:"resolv_conf"`
}

var dnsSchema = options{"resolv_conf": attr("resolv_conf", "string")}

// resolvConfs are the values of --resolv-conf= (systemd-nspawn(1)).
var resolvConfs = []string{
	"off", "copy-host", "copy-static", "copy-uplink", "copy-stub", "replace-host", "replace-static",
	"replace-uplink", "replace-stub", "bind-host", "bind-static", "bind-uplink", "bind-stub", "delete", "auto",
}

func (c TaskConfig) validateDNS() error { return oneOf("resolv_conf", c.ResolvConf, resolvConfs) }

// HostDNS is what the host's files say about names.
type HostDNS struct {
	// ResolvConf is /etc/resolv.conf.
	ResolvConf string
	// Uplink is systemd-resolved's list of servers, for machines that cannot
	// reach its stub on the host's loopback. It may be empty.
	Uplink string
}

// applyDNS gives the machine a resolv.conf, unless the job or the image decides.
func (c TaskConfig) applyDNS(in Input, spec *machine.Spec) error {
	var found mistakes
	dns := in.Task.DNS
	found.unless(c.Ephemeral || dns == nil, "ephemeral: the dns block of the group's network cannot be written into an image that is run in place")
	found.unless(c.ResolvConf == "" || dns == nil, "resolv_conf: cannot be combined with the dns block of the group's network")
	switch {
	case c.ResolvConf != "":
		spec.ResolvConf = c.ResolvConf
	case !c.Ephemeral:
		spec.ResolvConf = "auto"
	default:
		spec.ResolvConf = "off"
		// A booted system with a network of its own asks its DHCP server.
		if dns != nil || spec.Mode != machine.Boot || !spec.Network.Veth {
			spec.Root.Files = append(spec.Root.Files, machine.File{Path: "/etc/resolv.conf", Content: resolvConf(dns, spec.Network, in.DNS)})
		}
	}
	return found.err()
}

// stub is the address of systemd-resolved's DNS stub (systemd-resolved(8)).
const stub = "127.0.0.53"

// resolvConf returns the host's resolv.conf, with what the dns block says in
// place of it.
func resolvConf(config *drivers.DNSConfig, network machine.Network, dns HostDNS) string {
	base := dns.ResolvConf
	private := network.Veth || network.Namespace != ""
	if private && strings.Contains(base, stub) && dns.Uplink != "" {
		base = dns.Uplink
	}
	if config == nil {
		return base
	}
	replaced := map[string][]string{"nameserver": config.Servers, "search": config.Searches, "options": config.Options}
	var b strings.Builder
	for line := range strings.Lines(base) {
		fields := strings.Fields(line)
		if len(fields) > 0 && len(replaced[fields[0]]) == 0 && !strings.HasPrefix(fields[0], "#") {
			b.WriteString(strings.TrimSuffix(line, "\n") + "\n")
		}
	}
	for _, server := range config.Servers {
		b.WriteString("nameserver " + server + "\n")
	}
	for _, keyword := range []string{"search", "options"} {
		if list := replaced[keyword]; len(list) > 0 {
			b.WriteString(keyword + " " + strings.Join(list, " ") + "\n")
		}
	}
	return b.String()
}
