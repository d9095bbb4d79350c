package driver

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"

	"golang.org/x/sys/unix"

	"nomad-driver-nspawn/nspawn"
)

// checkPorts refuses ports of the host that something listens on. A forwarded port
// takes the traffic of all the host's addresses, before a listener gets any: the
// machine would receive what is meant for the host's services.
//
// Whoever listens only after the start is not seen. Ports that Nomad must not give
// to jobs at all belong into reserved_ports of the agent.
func checkPorts(ctx context.Context, ports []nspawn.Port) error {
	var errs []error
	for _, port := range ports {
		errs = append(errs, checkPort(ctx, port.Host))
	}
	return errors.Join(errs...)
}

// checkPort binds the port on all addresses of both protocols, which fails if any
// socket has it on any address.
func checkPort(ctx context.Context, port int) error {
	address := net.JoinHostPort("", strconv.Itoa(port))
	var config net.ListenConfig
	stream, err := config.Listen(ctx, "tcp", address)
	if err != nil {
		return portError(port, "TCP", err)
	}
	defer stream.Close()
	packets, err := config.ListenPacket(ctx, "udp", address)
	if err != nil {
		return portError(port, "UDP", err)
	}
	return packets.Close()
}

func portError(port int, protocol string, err error) error {
	if errors.Is(err, unix.EADDRINUSE) {
		return fmt.Errorf("ports: %s port %d is in use on this client: stop what listens there, take another port, or reserve it with reserved_ports in the agent's config", protocol, port)
	}
	return fmt.Errorf("ports: try whether %s port %d is free: %w", protocol, port, err)
}
