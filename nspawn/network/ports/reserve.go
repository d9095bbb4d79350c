package ports

import (
	"errors"
	"fmt"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"
)

// Reservation keeps ports from other programs of the host. NAT comes first, so a program
// that listened on a forwarded port would receive nothing. And forwarding a port on which
// a program listens would take the program's clients away.
type Reservation struct{ sockets []*os.File }

// Reserve binds the host's ports of the mappings, TCP and UDP, without listening. It
// returns an error if another program uses one of them, or if the host does not have an
// address.
func Reserve(mappings []Mapping) (*Reservation, error) {
	r := &Reservation{}
	for _, mapping := range mappings {
		for _, kind := range []int{unix.SOCK_STREAM, unix.SOCK_DGRAM} {
			socket, err := bind(mapping, kind)
			if err != nil {
				return nil, errors.Join(fmt.Errorf("reserve %s of the host: %w", mapping, err), r.Close())
			}
			r.sockets = append(r.sockets, socket)
		}
	}
	return r, nil
}

// Close releases the ports.
func (r *Reservation) Close() error {
	var errs []error
	for _, socket := range r.sockets {
		errs = append(errs, socket.Close())
	}
	return errors.Join(errs...)
}

func bind(m Mapping, kind int) (*os.File, error) {
	err := error(nil)
	for _, address := range m.socketAddresses() {
		var fd int
		if fd, err = bindTo(address, kind); err == nil {
			return os.NewFile(uintptr(fd), m.String()), nil
		}
		if !errors.Is(err, unix.EAFNOSUPPORT) { // with EAFNOSUPPORT, the host has no IPv6
			break
		}
	}
	protocol := map[int]string{unix.SOCK_STREAM: "TCP", unix.SOCK_DGRAM: "UDP"}[kind]
	switch {
	case errors.Is(err, unix.EADDRINUSE):
		return nil, fmt.Errorf("another program uses it for %s; `ss -anp sport = :%d` shows which: %w", protocol, m.Host, err)
	case errors.Is(err, unix.EADDRNOTAVAIL):
		return nil, fmt.Errorf("the host does not have this address: %w", err)
	}
	return nil, fmt.Errorf("%s: %w", protocol, err)
}

// socketAddresses returns the addresses to try in order. The IPv6 wildcard includes the
// IPv4 wildcard.
func (m Mapping) socketAddresses() []netip.AddrPort {
	if m.any() {
		return []netip.AddrPort{netip.AddrPortFrom(netip.IPv6Unspecified(), m.Host), netip.AddrPortFrom(netip.IPv4Unspecified(), m.Host)}
	}
	return []netip.AddrPort{netip.AddrPortFrom(m.HostIP.Unmap(), m.Host)}
}

// bindTo binds a socket. TCP needs SO_REUSEADDR, because an earlier connection that has
// not timed out yet would block the port. The option is then removed, because it would
// let other programs bind the port.
func bindTo(to netip.AddrPort, kind int) (fd int, err error) {
	domain, address := unix.AF_INET6, unix.Sockaddr(&unix.SockaddrInet6{Port: int(to.Port()), Addr: to.Addr().As16()})
	if to.Addr().Is4() {
		domain, address = unix.AF_INET, &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()}
	}
	if fd, err = unix.Socket(domain, kind|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0); err != nil {
		return -1, err
	}
	defer func() {
		if err != nil {
			unix.Close(fd)
		}
	}()
	if domain == unix.AF_INET6 && to.Addr().IsUnspecified() {
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 0); err != nil {
			return -1, err
		}
	}
	if kind != unix.SOCK_STREAM {
		return fd, unix.Bind(fd, address)
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
		return -1, err
	}
	if err := unix.Bind(fd, address); err != nil {
		return -1, err
	}
	return fd, unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 0)
}
