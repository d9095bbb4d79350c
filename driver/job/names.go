package job

import (
	"errors"

	"nomad-driver-nspawn/driver/schema"
	"nomad-driver-nspawn/nspawn/machine"
	"nomad-driver-nspawn/nspawn/network/names"
)

type nameOptions struct {
	Hostname   string   `codec:"hostname"`
	ExtraHosts []string `codec:"extra_hosts"`
}

var nameSchema = schema.Options{
	"hostname":    schema.Attr("hostname", "string"),
	"extra_hosts": schema.Attr("extra_hosts", "list(string)"),
}

func (c TaskConfig) validateNames() error {
	var found schema.Mistakes
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

// applyNames gives a command files by which it finds names. A guest has its own, and
// nothing can be shown in an image that nobody may change.
func (c TaskConfig) applyNames(in Input, spec *machine.Spec) error {
	spec.Hostname = c.Hostname
	if isolation := in.Task.NetworkIsolation; spec.Hostname == "" && isolation != nil && isolation.HostsConfig != nil {
		spec.Hostname = isolation.HostsConfig.Hostname
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

// isShown reports whether the job itself shows something at a path.
func isShown(spec *machine.Spec, path string) bool {
	for _, bind := range spec.Binds {
		if schema.Within(bind.Destination, path) {
			return true
		}
	}
	for _, overlay := range spec.Overlays {
		if schema.Within(overlay.Destination, path) {
			return true
		}
	}
	return false
}
