package network

import (
	"context"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/shoenig/test/must"
	"github.com/vishvananda/netlink"

	"nomad-driver-nspawn/e2e/host/hosttest"
)

func deadline(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

func TestConfigure(t *testing.T) {
	m := startMachine(t, "ve-test")
	other := startMachine(t, "ve-other")
	addAddress(t, other.hostLink, "192.168.77.1/28") // not ours
	defer m.networkd(t, "169.254.7.7/16", "fd00:7::1/64", "192.168.78.17/28", "192.168.79.1/28")()

	begin := time.Now()
	result, err := Configure(deadline(t, 5*time.Second), m.Process.Pid)
	must.NoError(t, err)
	t.Log("took", time.Since(begin))
	must.Eq(t, Result{
		Interface: "host0",
		Address:   netip.MustParsePrefix("192.168.78.18/28"),
		Gateway:   netip.MustParseAddr("192.168.78.17"),
	}, result)
	must.StrContains(t, m.ip(t, "address"), "192.168.78.18/28 brd 192.168.78.31 scope global host0")
	must.StrContains(t, m.ip(t, "route"), "default via 192.168.78.17 dev host0")
	must.StrContains(t, m.ip(t, "link", "show", "lo"), "LOOPBACK,UP")
	ping(t, "192.168.78.18")

	again, err := Configure(deadline(t, 5*time.Second), m.Process.Pid)
	must.NoError(t, err)
	must.Eq(t, result, again)
	must.Eq(t, 1, strings.Count(m.ip(t, "-4", "address", "show", "dev", "host0"), "\n"))

	addresses, err := Addresses(t.Context(), m.Process.Pid)
	must.NoError(t, err)
	must.Eq(t, []netip.Prefix{result.Address}, addresses)
	found, err := WaitAddress(deadline(t, 5*time.Second), m.Process.Pid)
	must.NoError(t, err)
	must.Eq(t, result.Address, found)
}

func addAddress(t *testing.T, link netlink.Link, address string) {
	t.Helper()
	a, err := netlink.ParseAddr(address)
	must.NoError(t, err)
	must.NoError(t, netlink.AddrAdd(link, a))
}

// busybox returns the path of it: of this system, or in a disposable host,
// which has none, of the guest's.
func busybox() string {
	if path, err := exec.LookPath("busybox"); err == nil {
		return path
	}
	return hosttest.Busybox + "/bin/busybox"
}

func ping(t *testing.T, address string) {
	t.Helper()
	out, err := exec.Command(busybox(), "ping", "-c1", "-W3", address).CombinedOutput()
	must.NoError(t, err, must.Sprint(string(out)))
}

func TestConfigureWithoutNetworkd(t *testing.T) {
	m := startMachine(t, "ve-lonely")
	_, err := Configure(deadline(t, 100*time.Millisecond), m.Process.Pid)
	must.ErrorIs(t, err, context.DeadlineExceeded)
	must.ErrorContains(t, err, "systemd-networkd must run on the host and manage ve-lonely")
	t.Log(err)
}

func TestConfigureMachineEnds(t *testing.T) {
	m := startMachine(t, "ve-short")
	_, err := WaitAddress(deadline(t, 0), m.Process.Pid)
	must.ErrorIs(t, err, context.DeadlineExceeded)

	for _, wait := range []func(context.Context, int) error{
		func(ctx context.Context, leader int) error { _, err := Configure(ctx, leader); return err },
		func(ctx context.Context, leader int) error { _, err := WaitAddress(ctx, leader); return err },
	} {
		m := startMachine(t, "ve-ending")
		failed := make(chan error, 1)
		go func() { failed <- wait(deadline(t, time.Minute), m.Process.Pid) }()
		time.Sleep(50 * time.Millisecond) // Whether it waits already makes no difference.
		must.NoError(t, m.Process.Kill())
		must.ErrorIs(t, <-failed, ErrExited)
		must.ErrorIs(t, wait(t.Context(), m.Process.Pid), ErrExited) // a zombie
		_ = m.Wait()
		must.ErrorIs(t, wait(t.Context(), m.Process.Pid), ErrExited) // gone
		_ = netlink.LinkDel(m.hostLink)
	}
}

func TestConfigureRefuses(t *testing.T) {
	hosttest.RequireRoot(t)
	t.Run("host network", func(t *testing.T) {
		_, err := Configure(deadline(t, time.Second), os.Getpid())
		must.ErrorContains(t, err, "started with --network-veth")
	})
	t.Run("no link", func(t *testing.T) {
		_, err := Configure(deadline(t, time.Second), startMachine(t, "").Process.Pid)
		must.ErrorContains(t, err, "started with --network-veth")
	})
	t.Run("other end elsewhere", func(t *testing.T) {
		m, elsewhere := startMachine(t, "ve-moved"), startMachine(t, "")
		must.NoError(t, netlink.LinkSetNsPid(m.hostLink, elsewhere.Process.Pid))
		_, err := Configure(deadline(t, time.Second), m.Process.Pid)
		must.ErrorContains(t, err, "find the host's end of host0")
	})
	t.Run("other link of that index", func(t *testing.T) {
		m, elsewhere := startMachine(t, "ve-index"), startMachine(t, "")
		must.NoError(t, netlink.LinkSetNsPid(m.hostLink, elsewhere.Process.Pid))
		impostor := &netlink.Veth{
			LinkAttrs: netlink.LinkAttrs{Name: "impostor", Index: m.hostLink.Attrs().Index}, PeerName: "impostor-peer",
		}
		must.NoError(t, netlink.LinkAdd(impostor))
		defer netlink.LinkDel(impostor)
		_, err := Configure(deadline(t, time.Second), m.Process.Pid)
		must.ErrorContains(t, err, "impostor is not it")
	})
	t.Run("bridge", func(t *testing.T) {
		m := startMachine(t, "vb-zone")
		bridge := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "vz-test"}}
		must.NoError(t, netlink.LinkAdd(bridge))
		defer netlink.LinkDel(bridge)
		must.NoError(t, netlink.LinkSetMaster(m.hostLink, bridge))
		_, err := Configure(deadline(t, time.Second), m.Process.Pid)
		must.ErrorContains(t, err, "vb-zone is in a bridge or zone")
	})
}

func TestWaitAddress(t *testing.T) {
	m := startMachine(t, "ve-boot")
	addresses, err := Addresses(t.Context(), m.Process.Pid)
	must.NoError(t, err)
	must.SliceEmpty(t, addresses)

	m.ip(t, "link", "set", "host0", "up")
	m.ip(t, "address", "add", "169.254.1.2/16", "dev", "host0")
	m.ip(t, "address", "add", "fd00:8::2/64", "dev", "host0", "nodad")
	m.ip(t, "link", "add", "other0", "type", "veth", "peer", "name", "other1")
	m.ip(t, "address", "add", "10.9.9.9/24", "dev", "other0")
	found := make(chan netip.Prefix, 1)
	go func() {
		address, err := WaitAddress(deadline(t, 5*time.Second), m.Process.Pid)
		if err != nil {
			t.Error(err)
		}
		found <- address
	}()
	select {
	case address := <-found:
		t.Fatalf("found %s too soon", address)
	case <-time.After(100 * time.Millisecond):
	}
	m.ip(t, "address", "add", "192.168.80.5/28", "dev", "host0")
	must.Eq(t, netip.MustParsePrefix("192.168.80.5/28"), <-found)

	m.ip(t, "address", "add", "2001:db8::5/64", "dev", "host0", "nodad")
	addresses, err = Addresses(t.Context(), m.Process.Pid)
	must.NoError(t, err)
	must.Eq(t, []netip.Prefix{
		netip.MustParsePrefix("192.168.80.5/28"), netip.MustParsePrefix("2001:db8::5/64"), netip.MustParsePrefix("fd00:8::2/64"),
	}, addresses)
}

// TestNothingStays looks for goroutines, descriptors, and threads left in a
// machine's network namespace.
func TestNothingStays(t *testing.T) {
	m := startMachine(t, "ve-many")
	defer m.networkd(t, "192.168.81.1/28")()
	_, err := Configure(deadline(t, 5*time.Second), m.Process.Pid)
	must.NoError(t, err)
	goroutines, files := runtime.NumGoroutine(), openFiles(t)
	for range 50 {
		_, err := Configure(deadline(t, 5*time.Second), m.Process.Pid)
		must.NoError(t, err)
		_, err = WaitAddress(deadline(t, 5*time.Second), m.Process.Pid)
		must.NoError(t, err)
	}
	must.LessEq(t, files+2, openFiles(t))
	must.LessEq(t, goroutines+4, runtime.NumGoroutine())

	own, err := os.Readlink("/proc/self/ns/net")
	must.NoError(t, err)
	threads, err := os.ReadDir("/proc/self/task")
	must.NoError(t, err)
	for _, thread := range threads {
		namespace, err := os.Readlink("/proc/self/task/" + thread.Name() + "/ns/net")
		if err == nil {
			must.Eq(t, own, namespace)
		}
	}
}

func openFiles(t *testing.T) int {
	t.Helper()
	files, err := os.ReadDir("/proc/self/fd")
	must.NoError(t, err)
	return len(files)
}
