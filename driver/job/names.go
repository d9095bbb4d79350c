package job

import (
	"errors"

	"github.com/hashicorp/nomad/plugins/drivers"

	"nomad-driver-nspawn/driver/schema"
	"nomad-driver-nspawn/nspawn/machine"
	"nomad-driver-nspawn/nspawn/network/names"
	"nomad-driver-nspawn/nspawn/paths"
)

// nameOptions set the container's host name, and how it resolves the names of others.
type nameOptions struct {
	ExtraHosts []string `codec:"extra_hosts"`
	Hostname   string   `codec:"hostname"`
	ResolvConf string   `codec:"resolv_conf"`
}

var nameSchema = schema.Options{
	"extra_hosts": schema.Attr("extra_hosts", "list(string)"),
	"hostname":    schema.Attr("hostname", "string"),
	"resolv_conf": schema.Attr("resolv_conf", "string"),
}

// resolvConfs are the values of --resolv-conf= (systemd-nspawn(1)).
var resolvConfs = []string{
	"off", "copy-host", "copy-static", "copy-uplink", "copy-stub", "replace-host", "replace-static",
	"replace-uplink", "replace-stub", "bind-host", "bind-static", "bind-uplink", "bind-stub", "delete", "auto",
}

func (c TaskConfig) validateNames() error {
	var found schema.Mistakes
	found.Add(schema.OneOf("resolv_conf", c.ResolvConf, resolvConfs))
	if c.Hostname != "" {
		found.Add(schema.Prefixed("hostname: ", names.CheckHostname(c.Hostname)))
	}
	for i, entry := range c.ExtraHosts {
		_, err := names.ParseExtra(entry)
		found.Add(schema.Prefixed(schema.At("extra_hosts", i)+": ", err))
	}
	found.Unless(len(c.ExtraHosts) == 0 || c.Mode() != machine.Boot, "extra_hosts: a booted guest has an /etc/hosts of its own: put the names there")
	return found.Err()
}

func (c TaskConfig) applyNames(in Input, spec *machine.Spec) error {
	return errors.Join(c.applyDNS(in, spec), c.applyHosts(in, spec))
}

// applyDNS gives the machine a resolv.conf, unless the job or the image provides it.
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
			text, _ := resolver.Text() // Without servers it is empty: a guest may know others.
			spec.Root.Files = append(spec.Root.Files, machine.File{Path: machine.ResolvFile, Content: text})
		}
	}
	return found.Err()
}

// jobsDNS returns the dns block of the group's network.
func jobsDNS(config *drivers.DNSConfig) names.DNS {
	if config == nil {
		return names.DNS{}
	}
	return names.DNS{Servers: config.Servers, Searches: config.Searches, Options: config.Options}
}

// applyHosts gives the machine its host name, and a command an /etc/hosts. A booted guest
// has its own, and nothing can be mounted in an image that nobody may change.
func (c TaskConfig) applyHosts(in Input, spec *machine.Spec) error {
	spec.Hostname = c.Hostname
	if isolation := in.Task.NetworkIsolation; spec.Hostname == "" && isolation != nil && isolation.HostsConfig != nil {
		spec.Hostname = isolation.HostsConfig.Hostname
		if spec.Hostname != "" {
			if err := names.CheckHostname(spec.Hostname); err != nil {
				return schema.Prefixed("hostname of the group's network: ", err)
			}
		}
	}
	if !namesAreOurs(spec) || isShown(spec, machine.HostsFile) {
		if len(c.ExtraHosts) > 0 {
			return errors.New("extra_hosts: /etc/hosts is not the driver's to write, as the job binds another or runs an image in place that is read-only")
		}
		return nil
	}
	hosts := names.Hosts{Hostname: spec.Hostname}
	if hosts.Hostname == "" {
		hosts.Hostname = spec.Machine
	}
	for _, entry := range c.ExtraHosts {
		extra, err := names.ParseExtra(entry)
		if err != nil {
			return err
		}
		hosts.Extra = append(hosts.Extra, extra)
	}
	spec.Names.Hosts = &hosts
	return nil
}

func namesAreOurs(spec *machine.Spec) bool {
	return spec.Mode != machine.Boot && !(spec.Root.InPlace && spec.Root.ReadOnly)
}

// isShown reports whether the job itself mounts something at a path.
func isShown(spec *machine.Spec, path string) bool {
	for _, bind := range spec.Binds {
		if paths.Within(bind.Destination, path) {
			return true
		}
	}
	for _, overlay := range spec.Overlays {
		if paths.Within(overlay.Destination, path) {
			return true
		}
	}
	return false
}
