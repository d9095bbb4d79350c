package job

import (
	"github.com/hashicorp/nomad/plugins/drivers"

	"nomad-driver-nspawn/driver/schema"
	"nomad-driver-nspawn/nspawn/machine"
	"nomad-driver-nspawn/nspawn/network/names"
)

type dnsOptions struct {
	ResolvConf string `codec:"resolv_conf"`
}

var dnsSchema = schema.Options{"resolv_conf": schema.Attr("resolv_conf", "string")}

// resolvConfs are the values of --resolv-conf= (systemd-nspawn(1)).
var resolvConfs = []string{
	"off", "copy-host", "copy-static", "copy-uplink", "copy-stub", "replace-host", "replace-static",
	"replace-uplink", "replace-stub", "bind-host", "bind-static", "bind-uplink", "bind-stub", "delete", "auto",
}

func (c TaskConfig) validateDNS() error {
	return schema.OneOf("resolv_conf", c.ResolvConf, resolvConfs)
}

// applyDNS gives the machine a resolv.conf, unless the job or the image decides.
func (c TaskConfig) applyDNS(in Input, spec *machine.Spec) error {
	var found schema.Mistakes
	dns := in.Task.DNS
	found.Unless(c.ResolvConf == "" || dns == nil, "resolv_conf: cannot be combined with the dns block of the group's network")
	resolver := names.Resolver{
		Host: in.DNS, DNS: jobsDNS(dns), Private: spec.Network.Kind != "" || spec.Network.Namespace != "",
	}
	switch {
	case c.ResolvConf != "":
		spec.ResolvConf = c.ResolvConf
	case isShown(spec, machine.ResolvFile):
		spec.ResolvConf = "off"
	case namesAreOurs(spec):
		spec.ResolvConf, spec.Names.Resolver = "off", &resolver
	case !c.Ephemeral:
		spec.ResolvConf = "auto"
		found.Unless(dns == nil, "ephemeral: the dns block of the group's network cannot be written into an image that is run in place")
	default:
		spec.ResolvConf = "off"
		// A booted system with a network of its own asks its DHCP server.
		if dns != nil || spec.Network.Kind == "" {
			text, _ := resolver.Text() // A guest may know of other servers.
			spec.Root.Files = append(spec.Root.Files, machine.File{Path: machine.ResolvFile, Content: text})
		}
	}
	return found.Err()
}

// jobsDNS is the dns block of the group's network.
func jobsDNS(config *drivers.DNSConfig) names.DNS {
	if config == nil {
		return names.DNS{}
	}
	return names.DNS{Servers: config.Servers, Searches: config.Searches, Options: config.Options}
}
