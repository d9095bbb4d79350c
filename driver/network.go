package driver

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/hashicorp/nomad/plugins/drivers"

	"nomad-driver-nspawn/driver/job"
	"nomad-driver-nspawn/nspawn"
	"nomad-driver-nspawn/nspawn/machine"
	"nomad-driver-nspawn/nspawn/network/links"
	"nomad-driver-nspawn/nspawn/network/names"
	"nomad-driver-nspawn/nspawn/network/ports"
)

// checkNetworkd refuses a zone whose addresses nobody would give. A booted machine can do
// without the network of its veth link, which is told.
func (d *Driver) checkNetworkd(ctx context.Context, cfg *drivers.TaskConfig, spec machine.Spec) error {
	zone := spec.Network.Kind == links.Zone
	if !zone && (spec.Network.Kind != links.Veth || spec.Mode != machine.Boot) {
		return nil
	}
	const remedy = "systemd-networkd does not run on this client; the operator turns it on with systemctl enable --now systemd-networkd"
	runs, err := d.bus.Runs(ctx, nspawn.Networkd)
	switch {
	case err != nil:
		return fmt.Errorf("look for systemd-networkd: %w", err)
	case runs:
		return nil
	case zone:
		return errors.New("network_zone: " + remedy)
	}
	d.emit(cfg, "Machine gets no address, and its ports are not forwarded: "+remedy)
	return nil
}

// networkStep connects a machine to its network before its payload begins. A booted
// machine configures itself, which may take seconds. The start does not wait for that.
type networkStep struct {
	driver     *Driver
	task       *drivers.TaskConfig
	spec       machine.Spec
	connection links.Connection
}

// connect is an nspawn.Step.
func (n *networkStep) connect(ctx context.Context, waiting nspawn.Waiting) (err error) {
	if n.spec.Connected() {
		n.connection, err = n.driver.machines.Connect(ctx, n.spec, waiting)
	}
	if err != nil {
		return err
	}
	if n.connection.Warning != nil {
		n.driver.emit(n.task, fmt.Sprintf("Network may not work: %v", n.connection.Warning))
	}
	var none *names.NoServerError
	if resolver := n.spec.Names.Connected(n.connection).Resolver; resolver != nil {
		if _, err := resolver.Text(); errors.As(err, &none) {
			n.driver.emit(n.task, fmt.Sprintf("Machine cannot resolve names: %v", none))
		}
	}
	return nil
}

// look finds the connection of an adopted machine, which another plugin has made.
func (n *networkStep) look(ctx context.Context) {
	if !n.spec.Connected() || n.connection.Interface != "" {
		return
	}
	c, err := n.driver.machines.Connection(ctx, n.spec)
	if err != nil { // The machine may have ended.
		n.driver.logger.Info("find the network of an adopted task", "task_id", n.task.ID, "error", err)
		return
	}
	n.connection = c
}

// result returns what Nomad is told about the network, or nil if there is no address.
func (n *networkStep) result(task job.TaskConfig) *drivers.DriverNetwork {
	if !n.connection.IPv4.IsValid() {
		return nil
	}
	return &drivers.DriverNetwork{IP: n.connection.IPv4.Addr().String(), PortMap: task.PortLabels(n.spec.Network)}
}

// NetworkState is the connection of a task, for later plugins.
type NetworkState struct {
	Kind, Of                string
	Interface, Link, Bridge string
	MAC                     []byte
	IPv4, IPv6              string // with the prefix length
	Ports                   []PortState
}

// PortState is a forwarded port of the host.
type PortState struct {
	HostIP          string // "" for all addresses
	Host, Container uint16
}

func newNetworkState(network machine.Network, c links.Connection) NetworkState {
	state := NetworkState{
		Kind: string(network.Kind), Of: network.Of, Interface: c.Interface, Link: c.Link, Bridge: c.Bridge, MAC: c.MAC,
		IPv4: prefixText(c.IPv4), IPv6: prefixText(c.IPv6),
	}
	for _, port := range network.Ports {
		p := PortState{Host: port.Host, Container: port.Container}
		if port.HostIP.IsValid() {
			p.HostIP = port.HostIP.String()
		}
		state.Ports = append(state.Ports, p)
	}
	return state
}

func prefixText(p netip.Prefix) string {
	if !p.IsValid() {
		return ""
	}
	return p.String()
}

// network returns the recorded network. Values that cannot be parsed count as missing.
func (s NetworkState) network() (machine.Network, links.Connection) {
	network := machine.Network{Kind: links.Kind(s.Kind), Of: s.Of}
	for _, port := range s.Ports {
		address, _ := netip.ParseAddr(port.HostIP)
		network.Ports = append(network.Ports, ports.Mapping{HostIP: address, Host: port.Host, Container: port.Container})
	}
	c := links.Connection{Interface: s.Interface, Link: s.Link, Bridge: s.Bridge, MAC: net.HardwareAddr(s.MAC)}
	c.IPv4, _ = netip.ParsePrefix(s.IPv4)
	c.IPv6, _ = netip.ParsePrefix(s.IPv6)
	return network, c
}

// connected returns the recorded network of a task as a spec, as far as it is known, and
// its connection.
func (h *taskHandle) connected() (machine.Spec, links.Connection) {
	network, c := h.state.Network.network()
	return machine.Spec{Machine: h.machine, Mode: h.state.Mode, Network: network}, c
}

// keepConnected maintains the network of a task until its machine ends. A guest is
// connected again at each reboot.
func (d *Driver) keepConnected(h *taskHandle) {
	spec, c := h.connected()
	if spec.Network.Kind == "" {
		return
	}
	ctx, cancel := context.WithCancel(d.ctx)
	if stop := h.disconnect.Swap(&cancel); stop != nil {
		(*stop)()
	}
	go func() {
		defer cancel()
		d.machines.KeepConnected(ctx, spec, c, func(err error) {
			d.logger.Warn("keep task connected", "task_id", h.config.ID, "error", err)
			d.emit(h.config, fmt.Sprintf("Network: %v", err))
		})
	}()
}

// reconnect restores what is missing of the network of a task that another plugin started.
func (d *Driver) reconnect(ctx context.Context, h *taskHandle) {
	spec, c := h.connected()
	if spec.Network.Kind == "" {
		return
	}
	if err := d.machines.Reconnect(ctx, spec, c); err != nil {
		d.logger.Warn("recover task: restore its network", "task_id", h.config.ID, "error", err)
		d.emit(h.config, fmt.Sprintf("Network: %v", err))
	}
}
