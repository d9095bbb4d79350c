package network

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"nomad-driver-nspawn/nspawn/pidfd"
)

// guestLink is what systemd-nspawn calls the end of the veth pair that is in
// the machine.
const guestLink = "host0"

// machine is the network of a machine as seen from the host.
type machine struct {
	pid    int      // of the leader
	pidfd  int      // names its network namespace too (setns(2), kernel 5.8)
	leader *os.File // owns pidfd
	inside *netlink.Handle
	link   netlink.Link // host0
}

// open returns the network of the machine whose first process is leader.
func open(ctx context.Context, leader int) (*machine, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	fd, err := unix.PidfdOpen(leader, unix.PIDFD_NONBLOCK)
	if errors.Is(err, unix.ESRCH) {
		return nil, ErrExited
	}
	if err != nil {
		return nil, fmt.Errorf("open leader %d: %w", leader, err)
	}
	m := &machine{pid: leader, pidfd: fd, leader: os.NewFile(uintptr(fd), "leader")}
	if err := m.enter(); err != nil {
		defer m.close()
		if pidfd.Exited(fd) || ending(leader) {
			return nil, ErrExited
		}
		return nil, err
	}
	return m, nil
}

// ending tells whether the process has given up its namespaces, as it does a moment before its pidfd tells of its end.
func ending(pid int) bool {
	_, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", pid))
	return err != nil
}

func (m *machine) enter() (err error) {
	if m.inside, err = netlink.NewHandleAt(m.namespace(), unix.NETLINK_ROUTE); err != nil {
		return fmt.Errorf("enter network namespace: %w", err)
	}
	if m.link, err = m.inside.LinkByName(guestLink); err != nil {
		return fmt.Errorf("find %s in the machine, is it started with --network-veth?: %w", guestLink, err)
	}
	return nil
}

func (m *machine) namespace() netns.NsHandle { return netns.NsHandle(m.pidfd) }

func (m *machine) close() {
	if m.inside != nil {
		m.inside.Close()
	}
	m.leader.Close()
}

// hostLink returns the host's end of the veth pair. Its name need not be
// ve-MACHINE: a long one is cut and hashed.
func (m *machine) hostLink() (netlink.Link, error) {
	inside := m.link.Attrs()
	outside, err := netlink.LinkByIndex(inside.ParentIndex)
	if err != nil {
		return nil, fmt.Errorf("find the host's end of %s: %w", guestLink, err)
	}
	// Were the other end not on this host, its index could be that of any link
	// here: the link must name the machine's namespace.
	id, err := netlink.GetNetNsIdByPid(m.pid)
	if err != nil {
		return nil, fmt.Errorf("find the host's end of %s: identify network namespace: %w", guestLink, err)
	}
	if id < 0 || outside.Attrs().NetNsID != id || outside.Attrs().ParentIndex != inside.Index {
		return nil, fmt.Errorf("find the host's end of %s: %s is not it", guestLink, outside.Attrs().Name)
	}
	return outside, nil
}

// up brings the links in the machine up, upon which the host's end gets a
// carrier.
func (m *machine) up() error {
	loopback, err := m.inside.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find lo in the machine: %w", err)
	}
	for _, link := range []netlink.Link{loopback, m.link} {
		if err := m.inside.LinkSetUp(link); err != nil {
			return fmt.Errorf("bring %s up in the machine: %w", link.Attrs().Name, err)
		}
	}
	return nil
}

// addresses lists the global addresses of host0, IPv4 first.
func (m *machine) addresses() ([]netip.Prefix, error) {
	list, err := m.inside.AddrList(m.link, netlink.FAMILY_ALL)
	if err != nil {
		return nil, fmt.Errorf("list addresses of %s: %w", guestLink, err)
	}
	var prefixes []netip.Prefix
	for _, a := range list {
		if p, ok := global(a); ok {
			prefixes = append(prefixes, p)
		}
	}
	slices.SortFunc(prefixes, netip.Prefix.Compare)
	return prefixes, nil
}

// assign gives host0 an address, and the machine a default route.
func (m *machine) assign(address netip.Prefix, gateway netip.Addr) error {
	a, err := netlink.ParseAddr(address.String())
	if err != nil {
		return err
	}
	if err := m.inside.AddrReplace(m.link, a); err != nil {
		return fmt.Errorf("give %s address %s: %w", guestLink, address, err)
	}
	route := &netlink.Route{LinkIndex: m.link.Attrs().Index, Gw: gateway.AsSlice()}
	if err := m.inside.RouteReplace(route); err != nil {
		return fmt.Errorf("route by %s to %s: %w", guestLink, gateway, err)
	}
	return nil
}

// untilExit returns a context that ends with ctx, and with cause ErrExited when
// the leader does.
func (m *machine) untilExit(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	go func() {
		if err := pidfd.Await(m.leader); err == nil { // closing it ends the wait as well
			cancel(ErrExited)
		}
	}()
	return ctx, func() { cancel(nil) }
}
