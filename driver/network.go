package driver

import (
	"errors"
	"fmt"
	"strings"

	"github.com/hashicorp/nomad/plugins/drivers"

	"nomad-driver-nspawn/nspawn"
)

// newNetwork is the group's network if it has one of its own, else a veth
// pair, unless the job asks for the host's network.
func newNetwork(task TaskConfig, cfg *drivers.TaskConfig) (nspawn.Network, error) {
	var network nspawn.Network
	var errs []error
	if isolation := cfg.NetworkIsolation; isolation != nil && isolation.Path != "" {
		network.Namespace = isolation.Path
	}
	switch {
	case network.Namespace == "":
		network.Veth = task.NetworkVeth == nil || *task.NetworkVeth
	case task.NetworkVeth != nil && *task.NetworkVeth:
		errs = append(errs, errors.New("network_veth: the group's network mode gives the task a network; use mode host for a veth of its own"))
	}
	if len(task.Ports) > 0 && !network.Veth {
		errs = append(errs, errors.New("ports: are forwarded only with network_veth; Nomad itself forwards the ports of a bridge network"))
	}
	for i, label := range task.Ports {
		port, err := newPort(cfg.Resources, label)
		if err != nil {
			errs = append(errs, fmt.Errorf("ports[%d]: %w", i, err))
		}
		network.Ports = append(network.Ports, port)
	}
	return network, errors.Join(errs...)
}

func newPort(resources *drivers.Resources, label string) (nspawn.Port, error) {
	if resources == nil || resources.Ports == nil {
		return nspawn.Port{}, fmt.Errorf("port %q: the group's network block has no ports", label)
	}
	mapping, ok := resources.Ports.Get(label)
	if !ok {
		var labels []string
		for _, port := range *resources.Ports {
			labels = append(labels, port.Label)
		}
		return nspawn.Port{}, fmt.Errorf("port %q is not in the group's network block, which has %s", label, strings.Join(labels, ", "))
	}
	port := nspawn.Port{Host: mapping.Value, Container: mapping.To}
	if port.Container <= 0 {
		port.Container = port.Host
	}
	return port, nil
}

// hostDNS is what the host's files say about names.
type hostDNS struct {
	// ResolvConf is /etc/resolv.conf.
	ResolvConf string
	// Uplink is systemd-resolved's list of servers, for those who cannot
	// reach its stub on the host's loopback. It may be empty.
	Uplink string
}

// stub is the address of systemd-resolved's DNS stub, see systemd-resolved(8).
const stub = "127.0.0.53"

// nameFiles are the files that the image needs to resolve names, or the value
// of nspawn's option, where the job or the image decides.
func nameFiles(task TaskConfig, cfg *drivers.TaskConfig, network nspawn.Network, dns hostDNS) (files []nspawn.File, option string) {
	boot := task.mode() == nspawn.Boot
	switch {
	case task.ResolvConf != "":
		option = task.ResolvConf
	case !task.Ephemeral:
		option = "auto"
	default:
		option = "off"
		// A booted system with a network of its own asks its DHCP server.
		if cfg.DNS != nil || !boot || !network.Veth {
			files = append(files, nspawn.File{Path: "/etc/resolv.conf", Content: resolvConf(cfg.DNS, network, dns)})
		}
	}
	if task.Ephemeral && !boot {
		files = append(files, nspawn.File{Path: "/etc/hosts", Content: hosts(task.Hostname), Keep: true})
	}
	return files, option
}

// resolvConf is the host's, with what the dns block says in place of it.
func resolvConf(config *drivers.DNSConfig, network nspawn.Network, dns hostDNS) string {
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

// hosts is for images without one, whose "localhost" would go to a DNS server.
func hosts(hostname string) string {
	content := "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n"
	if hostname != "" {
		content += "127.0.1.1 " + hostname + "\n"
	}
	return content
}
