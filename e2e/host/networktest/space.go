// Package networktest creates network namespaces that act as hosts, containers and other
// machines in tests.
package networktest

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
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

// Space is a network namespace: a host, a container, or another machine.
type Space struct {
	work chan func()
	Path string // of the namespace
}

// Bare creates a namespace in the initial state of a container's namespace.
func Bare(t testing.TB) *Space {
	t.Helper()
	hosttest.RequireRoot(t)
	return start(t, func() error { return unix.Unshare(unix.CLONE_NEWNET) })
}

// New creates a namespace with lo up.
func New(t testing.TB) *Space {
	t.Helper()
	hosttest.RequireRoot(t)
	s := start(t, func() error { return unix.Unshare(unix.CLONE_NEWNET) })
	s.IP(t, "link set lo up")
	return s
}

// Host returns the namespace of the calling process.
func Host(t testing.TB) *Space {
	t.Helper()
	return start(t, func() error { return nil })
}

// Twin returns another thread of the same namespace.
func (s *Space) Twin(t testing.TB) *Space {
	t.Helper()
	return start(t, func() error {
		fd, err := unix.Open(s.Path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		return unix.Setns(fd, unix.CLONE_NEWNET)
	})
}

func start(t testing.TB, enter func() error) *Space {
	t.Helper()
	s := &Space{work: make(chan func())}
	ready := make(chan error)
	go func() {
		runtime.LockOSThread() // The thread ends with the goroutine.
		err := enter()
		s.Path = fmt.Sprintf("/proc/%d/task/%d/ns/net", os.Getpid(), unix.Gettid())
		ready <- err
		for work := range s.work {
			work()
		}
	}()
	must.NoError(t, <-ready)
	t.Cleanup(func() { close(s.work) })
	return s
}

// Do runs work in the namespace. Sockets that work creates stay in the namespace.
func (s *Space) Do(work func()) {
	done := make(chan struct{})
	s.work <- func() { defer close(done); work() }
	<-done
}

// Run runs a program in the namespace and returns what it prints.
func (s *Space) Run(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command("nsenter", append([]string{"--net=" + s.Path, name}, args...)...).CombinedOutput()
	must.NoError(t, err, must.Sprint(name, " ", args, ": ", string(out)))
	return string(out)
}

// Ip runs ip(8) with each line of commands.
func (s *Space) IP(t testing.TB, commands ...string) {
	t.Helper()
	for _, c := range commands {
		s.Run(t, "ip", strings.Fields(c)...)
	}
}

// Link connects two namespaces by a veth pair and gives each end its address.
func (s *Space) Link(t testing.TB, name string, other *Space, otherName string) {
	t.Helper()
	s.IP(t, fmt.Sprintf("link add %s type veth peer name %s netns %s", name, otherName, other.Path))
	s.IP(t, "link set "+name+" up")
	other.IP(t, "link set "+otherName+" up")
}

// Serve answers each TCP connection and UDP packet with "WORDS from CLIENT".
func (s *Space) Serve(t testing.TB, address, words string) {
	t.Helper()
	var listener net.Listener
	var packets net.PacketConn
	var err, errPackets error
	s.Do(func() {
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

// Patience is how long Ask waits for an answer.
const Patience = 300 * time.Millisecond

// BusyPatience is how long Hear waits: on a busy host, a server may wait for its turn.
const BusyPatience = 30 * time.Second

// Ask returns the answer of a server, or "" if it cannot be reached. Use it for servers
// that must not be reachable, or not yet, and Hear if an answer is expected.
func (s *Space) Ask(network, address string) string {
	return s.askFrom(nil, network, address, Patience)
}

// Hear is like Ask, but waits as long as an answer takes on a busy host.
// A UDP packet is sent only once.
func (s *Space) Hear(network, address string) string {
	return s.askFrom(nil, network, address, BusyPatience)
}

// AskFrom is like Ask, from an address of the namespace.
func (s *Space) AskFrom(from net.Addr, network, address string) string {
	return s.askFrom(from, network, address, Patience)
}

func (s *Space) askFrom(from net.Addr, network, address string, patience time.Duration) string {
	var conn net.Conn
	var err error
	s.Do(func() {
		dialer := net.Dialer{Timeout: patience, LocalAddr: from}
		conn, err = dialer.Dial(network, address)
	})
	if err != nil {
		return ""
	}
	defer conn.Close()
	if network == "udp" {
		return Exchange(conn, patience)
	}
	_ = conn.SetDeadline(time.Now().Add(patience))
	said, _ := io.ReadAll(conn)
	return string(bytes.TrimSpace(said))
}

// Exchange sends a UDP packet and returns the answer, or "" if none comes in time.
func Exchange(conn net.Conn, patience time.Duration) string {
	_ = conn.SetDeadline(time.Now().Add(patience))
	_, _ = conn.Write([]byte("hello"))
	buffer := make([]byte, 100)
	n, _ := conn.Read(buffer)
	return string(buffer[:n])
}

// AwaitPeer waits until another namespace answers, on a port without a server. Both ends
// of a new link lose packets for a moment.
func (s *Space) AwaitPeer(t testing.TB, address string) {
	t.Helper()
	for start := time.Now(); ; {
		var err error
		s.Do(func() { _, err = net.DialTimeout("tcp", net.JoinHostPort(address, "1"), Patience) })
		if errors.Is(err, unix.ECONNREFUSED) {
			return
		}
		must.Less(t, BusyPatience, time.Since(start), must.Sprint(address, " does not answer: ", err))
	}
}
