package ports

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"

	"nomad-driver-nspawn/e2e/host/hosttest"
)

// TestMain runs the tests in a network namespace of their own, which is their
// host. A disposable host is the tests' already.
func TestMain(m *testing.M) {
	hosttest.RunPrivateOutside(m, unix.CLONE_NEWNET)
}

// space is a network namespace: a host, a container, or another machine.
type space struct {
	work chan func()
	path string
}

func newSpace(t *testing.T) *space {
	t.Helper()
	hosttest.RequireRoot(t)
	s := startSpace(t, func() error { return unix.Unshare(unix.CLONE_NEWNET) })
	s.ip(t, "link set lo up")
	return s
}

// twin returns another thread of the same namespace.
func (s *space) twin(t *testing.T) *space {
	t.Helper()
	return startSpace(t, func() error {
		fd, err := unix.Open(s.path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		return unix.Setns(fd, unix.CLONE_NEWNET)
	})
}

func startSpace(t *testing.T, enter func() error) *space {
	t.Helper()
	s := &space{work: make(chan func())}
	ready := make(chan error)
	go func() {
		runtime.LockOSThread() // The thread ends with the goroutine.
		err := enter()
		s.path = fmt.Sprintf("/proc/%d/task/%d/ns/net", os.Getpid(), unix.Gettid())
		ready <- err
		for work := range s.work {
			work()
		}
	}()
	must.NoError(t, <-ready)
	t.Cleanup(func() { close(s.work) })
	return s
}

// do runs work in the namespace. Sockets that it makes stay there.
func (s *space) do(work func()) {
	done := make(chan struct{})
	s.work <- func() { defer close(done); work() }
	<-done
}

func (s *space) run(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command("nsenter", append([]string{"--net=" + s.path, name}, args...)...).CombinedOutput()
	must.NoError(t, err, must.Sprint(name, " ", args, ": ", string(out)))
	return string(out)
}

// ip runs ip(8) with each line of commands.
func (s *space) ip(t *testing.T, commands ...string) {
	t.Helper()
	for _, c := range commands {
		s.run(t, "ip", strings.Fields(c)...)
	}
}

// link joins two namespaces by a veth pair, the first address of each.
func (s *space) link(t *testing.T, name string, other *space, otherName string) {
	t.Helper()
	s.ip(t, fmt.Sprintf("link add %s type veth peer name %s netns %s", name, otherName, other.path))
	s.ip(t, "link set "+name+" up")
	other.ip(t, "link set "+otherName+" up")
}

// serve answers each TCP connection and UDP packet with "WORDS from CLIENT".
func (s *space) serve(t *testing.T, address, words string) {
	t.Helper()
	var listener net.Listener
	var packets net.PacketConn
	var err, errPackets error
	s.do(func() {
		listener, err = net.Listen("tcp", address)
		packets, errPackets = net.ListenPacket("udp", address)
	})
	must.NoError(t, err)
	must.NoError(t, errPackets)
	t.Cleanup(func() { listener.Close(); packets.Close() })
	say := func(client net.Addr) []byte {
		host, _, _ := net.SplitHostPort(client.String())
		return []byte(words + " from " + host)
	}
	go func() {
		for conn, err := listener.Accept(); err == nil; conn, err = listener.Accept() {
			_, _ = conn.Write(say(conn.RemoteAddr()))
			conn.Close()
		}
	}()
	go func() {
		buffer := make([]byte, 100)
		for _, client, err := packets.ReadFrom(buffer); err == nil; _, client, err = packets.ReadFrom(buffer) {
			_, _ = packets.WriteTo(say(client), client)
		}
	}()
}

// patience is for answers that do not come.
const patience = 300 * time.Millisecond

// ask returns what a server says, or "" if it cannot be reached.
func (s *space) ask(network, address string) string { return s.askFrom(nil, network, address) }

func (s *space) askFrom(from net.Addr, network, address string) string {
	var conn net.Conn
	var err error
	s.do(func() {
		dialer := net.Dialer{Timeout: patience, LocalAddr: from}
		conn, err = dialer.Dial(network, address)
	})
	if err != nil {
		return ""
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(patience))
	if network == "udp" {
		_, _ = conn.Write([]byte("hello"))
		buffer := make([]byte, 100)
		n, _ := conn.Read(buffer)
		return string(buffer[:n])
	}
	said, _ := io.ReadAll(conn)
	return string(bytes.TrimSpace(said))
}

// awaitPeer waits until another namespace answers, at a port that nobody serves.
// Both ends of a new link lose packets for a moment.
func (s *space) awaitPeer(t *testing.T, address string) {
	t.Helper()
	for start := time.Now(); ; {
		var err error
		s.do(func() { _, err = net.DialTimeout("tcp", net.JoinHostPort(address, "1"), patience) })
		if errors.Is(err, unix.ECONNREFUSED) {
			return
		}
		must.Less(t, 5*time.Second, time.Since(start), must.Sprint(address, " does not answer: ", err))
	}
}

// world is a host with two containers and another machine on its network.
type world struct {
	host, other, web, sibling *space
	table                     *Table
	machines                  map[string]Machine
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{host: newSpace(t), other: newSpace(t), web: newSpace(t), sibling: newSpace(t), machines: map[string]Machine{}}
	w.host.run(t, "sh", "-c", "echo 1 >/proc/sys/net/ipv4/ip_forward; echo 1 >/proc/sys/net/ipv6/conf/all/forwarding")
	w.host.link(t, "up0", w.other, "eth0")
	w.host.ip(t, "addr add 203.0.113.1/24 dev up0", "addr add 203.0.113.7/24 dev up0", "addr add 2001:db8::1/64 dev up0 nodad")
	w.other.ip(t, "addr add 203.0.113.2/24 dev eth0", "addr add 2001:db8::2/64 dev eth0 nodad")
	w.container(t, "web", w.web, 1)
	w.container(t, "sibling", w.sibling, 2)
	for address, s := range map[string]*space{
		"203.0.113.1": w.other, "2001:db8::1": w.other,
		"10.99.1.1": w.web, "fd00:1::1": w.web, "10.99.2.1": w.sibling, "fd00:2::1": w.sibling,
	} {
		s.awaitPeer(t, address)
	}
	var err error
	w.host.do(func() { w.table, err = Open() })
	must.NoError(t, err)
	t.Cleanup(func() { w.table.Close() })
	return w
}

// container joins a namespace to the host as the driver does.
func (w *world) container(t *testing.T, name string, s *space, n int) {
	t.Helper()
	link := "nv-" + name
	w.host.link(t, link, s, "host0")
	w.host.ip(t, fmt.Sprintf("addr add 10.99.%d.1/30 dev %s", n, link), fmt.Sprintf("addr add fd00:%d::1/64 dev %s nodad", n, link))
	s.ip(t, fmt.Sprintf("addr add 10.99.%d.2/30 dev host0", n), fmt.Sprintf("addr add fd00:%d::2/64 dev host0 nodad", n),
		fmt.Sprintf("route add default via 10.99.%d.1", n), fmt.Sprintf("-6 route add default via fd00:%d::1", n))
	w.machines[name] = Machine{
		Name: name, Link: link,
		IPv4: netip.MustParseAddr(fmt.Sprintf("10.99.%d.2", n)), IPv6: netip.MustParseAddr(fmt.Sprintf("fd00:%d::2", n)),
	}
}

// add adds the machine with mappings, on the host.
func (w *world) add(name string, mappings ...Mapping) (err error) {
	m := w.machines[name]
	m.Mappings = mappings
	w.host.do(func() { err = w.table.Add(m) })
	return err
}

func (w *world) remove(t *testing.T, name string) {
	t.Helper()
	var err error
	w.host.do(func() { err = w.table.Remove(name) })
	must.NoError(t, err)
}

func (w *world) forget(t *testing.T, name string, mappings ...Mapping) {
	t.Helper()
	m := w.machines[name]
	m.Mappings = mappings
	var err error
	w.host.do(func() { err = ForgetFlows(m) })
	must.NoError(t, err)
}
