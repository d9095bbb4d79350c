package network

import (
	"errors"
	"fmt"
	"slices"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"
)

// systemd-nspawn keeps the ports it forwards in one map, in a table of the
// family ip and a like one of ip6; the rules of the table look up any port there
// (src/shared/firewall-util-nft.c; seen alike with systemd 252, 257 and 262).
// The set beside the map is systemd-networkd's, of what it masquerades.
const (
	natTable = "io.systemd.nat"
	portMap  = "map_port_ipport"
)

// Forward is a port of the host that systemd-nspawn forwards to a machine
// (--port=, systemd-nspawn(1)).
type Forward struct {
	Protocol string // tcp or udp
	HostPort uint16
}

// RemoveForwards removes from the firewall the ports that a killed
// systemd-nspawn left there, wherever they lead: they would lead to whichever
// machine gets the address next, and no other could have them. Those that are
// not there are no error. Call it when the machine has ended, and before a port
// of it is given to another.
//
// Connections that exist go on, as after an orderly stop: NAT looks up only the
// first packet of each (wiki.nftables.org, Performing NAT).
//
// It acts in the network namespace of the caller and needs CAP_NET_ADMIN. What
// systemd before 259 forwards by iptables, where the kernel has no nftables,
// stays (systemd#38976).
func RemoveForwards(forwards []Forward) error {
	if len(forwards) == 0 {
		return nil
	}
	keys := map[string]bool{}
	for _, f := range forwards {
		key, err := f.key()
		if err != nil {
			return fmt.Errorf("remove forwarded ports: %w", err)
		}
		keys[key] = true
	}
	conn, err := nftables.New(nftables.AsLasting())
	if err != nil {
		return fmt.Errorf("remove forwarded ports: open netlink socket: %w", err)
	}
	defer conn.CloseLasting()
	if err := removeElements(conn, nftables.TableFamilyIPv4, keys); err != nil {
		return fmt.Errorf("remove forwarded ports: map %s of table ip %s: %w", portMap, natTable, err)
	}
	if err := removeElements(conn, nftables.TableFamilyIPv6, keys); err != nil {
		return fmt.Errorf("remove forwarded ports: map %s of table ip6 %s: %w", portMap, natTable, err)
	}
	return nil
}

// key returns what the map has the port under, of the type inet_proto .
// inet_service: each at the start of four bytes, the port in network order.
func (f Forward) key() (string, error) {
	protocol, ok := map[string]byte{"tcp": unix.IPPROTO_TCP, "udp": unix.IPPROTO_UDP}[f.Protocol]
	if !ok {
		return "", fmt.Errorf("port %d: protocol %q is neither tcp nor udp", f.HostPort, f.Protocol)
	}
	return string([]byte{protocol, 0, 0, 0, byte(f.HostPort >> 8), byte(f.HostPort), 0, 0}), nil
}

// removeElements looks before it removes. Finding nothing takes 0.1 ms; being
// refused to remove nothing takes 10 ms, for which the kernel waits for its
// readers to take the transaction back.
func removeElements(conn *nftables.Conn, family nftables.TableFamily, keys map[string]bool) error {
	ports, err := conn.GetSetByName(&nftables.Table{Name: natTable, Family: family}, portMap)
	if errors.Is(err, unix.ENOENT) { // the map, or the table
		return nil
	}
	if err != nil {
		return fmt.Errorf("find: %w", err)
	}
	elements, err := conn.GetSetElements(ports)
	if err != nil {
		return fmt.Errorf("list elements: %w", err)
	}
	left := slices.DeleteFunc(elements, func(e nftables.SetElement) bool { return !keys[string(e.Key)] })
	if len(left) == 0 {
		return nil
	}
	if err = conn.SetDeleteElements(ports, left); err == nil {
		err = conn.Flush()
	}
	if errors.Is(err, unix.ENOENT) { // One has gone since, and then all others stay.
		return removeElements(conn, family, keys)
	}
	if err != nil {
		return fmt.Errorf("remove %d elements: %w", len(left), err)
	}
	return nil
}
