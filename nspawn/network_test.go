package nspawn

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"

	"nomad-driver-nspawn/nspawn/machine"
	"nomad-driver-nspawn/nspawn/network/links"
)

// vethStep gives the machine an address, as the driver does.
func vethStep(m *Manager, spec machine.Spec, address *netip.Addr) Step {
	return func(ctx context.Context, waiting Waiting) error {
		c, err := m.Connect(ctx, spec, waiting)
		*address = c.IPv4.Addr()
		return errors.Join(err, c.Warning)
	}
}

func TestHostVeth(t *testing.T) {
	m := newManager(t)
	spec := newMachine(t, m, "mkdir /www; echo hello >/www/x; exec httpd -f -p 80 -h /www")
	spec.Network = machine.Network{Kind: links.Veth}
	var address netip.Addr
	mustStart(t, m, spec, vethStep(m, spec, &address))
	c, err := m.Connection(t.Context(), spec)
	must.NoError(t, err)
	must.Eq(t, address, c.IPv4.Addr())
	must.StrHasSuffix(t, "hello\n", get(t, netip.AddrPortFrom(address, 80), "/x"))
}

// Nobody is told that the network of a machine that has ended is gone.
func TestHostKeepConnectedAfterEnd(t *testing.T) {
	m := newManager(t)
	spec := newMachine(t, m, "true")
	spec.Network = machine.Network{Kind: links.Zone, Of: "ended"}
	var connection links.Connection
	mustStart(t, m, spec, func(ctx context.Context, waiting Waiting) (err error) {
		connection, err = m.Connect(ctx, spec, waiting)
		return err
	})
	mustWait(t, m, spec.Machine)
	m.KeepConnected(t.Context(), spec, connection, func(err error) { t.Error(err) })
	must.NoError(t, m.Remove(t.Context(), spec.Machine))
	m.KeepConnected(t.Context(), spec, connection, func(err error) { t.Error(err) })
}

// A unit with a network namespace has a copy of the host's mounts from systemd 257 on, in
// which the file that pins the machine's own is no pin.
func TestHostGivenNetwork(t *testing.T) {
	m := newManager(t)
	spec := newMachine(t, m, "ls /sys/class/net; exit 7")
	namespace := filepath.Join("/run", "gate-test-"+spec.Machine)
	must.NoError(t, os.WriteFile(namespace, nil, 0o600))
	t.Cleanup(func() { must.NoError(t, os.Remove(namespace)) })
	must.NoError(t, exec.Command("unshare", "--net="+namespace, "true").Run())
	t.Cleanup(func() { must.NoError(t, unix.Unmount(namespace, unix.MNT_DETACH)) })
	spec.Network.Namespace = namespace
	out := mustStart(t, m, spec)
	must.Eq(t, Exit{Code: 7}, mustWait(t, m, spec.Machine))
	must.NoError(t, m.Remove(t.Context(), spec.Machine))
	must.Eq(t, "lo\n", <-out.stdout)
}

// get returns the answer of an HTTP server. The server may need a moment to listen, so a
// refused connection is repeated, up to a limit.
func get(t *testing.T, server netip.AddrPort, path string) string {
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		conn, err := net.DialTCP("tcp", nil, net.TCPAddrFromAddrPort(server))
		if errors.Is(err, unix.ECONNREFUSED) && time.Now().Before(deadline) {
			continue
		}
		must.NoError(t, err)
		defer conn.Close()
		_, err = fmt.Fprintf(conn, "GET %s HTTP/1.0\r\n\r\n", path)
		must.NoError(t, err)
		text, err := io.ReadAll(conn)
		must.NoError(t, err)
		return string(text)
	}
}
