package network

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"nomad-driver-nspawn/e2e/host/hosttest"
)

// nspawn starts a machine as a unit, waits until it is ready, and returns its
// leader.
func nspawn(t *testing.T, machine string, args ...string) (leader int) {
	t.Helper()
	args = append([]string{
		"--quiet", "--collect", "--unit=" + machine, "--service-type=notify", "--property=NotifyAccess=all",
		"--property=Delegate=yes", "--property=KillMode=mixed", "--", "systemd-nspawn", "--keep-unit", "--quiet",
		"--settings=no", "--machine=" + machine, "--network-veth", "--link-journal=no", "--resolv-conf=off", "--timezone=off",
	}, args...)
	t.Cleanup(func() { _ = exec.Command("systemctl", "stop", machine).Run() }) // Killed, it would leave its ports.
	out, err := exec.Command("systemd-run", args...).CombinedOutput()
	must.NoError(t, err, must.Sprint(string(out)))
	main, err := exec.Command("systemctl", "show", "--property=MainPID", "--value", machine).Output()
	must.NoError(t, err)
	pid := strings.TrimSpace(string(main))
	children, err := os.ReadFile("/proc/" + pid + "/task/" + pid + "/children")
	must.NoError(t, err)
	leader, err = strconv.Atoi(strings.TrimSpace(string(children)))
	must.NoError(t, err)
	return leader
}

// get reads what a TCP server says, once it is there: systemd-nspawn forwards a
// port some time after it sees an address.
func get(t *testing.T, address string) string {
	t.Helper()
	for start := time.Now(); ; time.Sleep(20 * time.Millisecond) {
		conn, err := net.DialTimeout("tcp", address, 3*time.Second)
		if err != nil {
			must.Less(t, 10*time.Second, time.Since(start), must.Sprint(err))
			continue
		}
		defer conn.Close()
		said, err := io.ReadAll(conn)
		must.NoError(t, err)
		return string(said)
	}
}

// ownAddress returns the address of the host's uplink.
func ownAddress(t *testing.T) string {
	t.Helper()
	conn, err := net.Dial("udp", "198.51.100.1:9") // sends nothing
	must.NoError(t, err)
	defer conn.Close()
	host, _, err := net.SplitHostPort(conn.LocalAddr().String())
	must.NoError(t, err)
	return host
}

func TestHostConfigure(t *testing.T) {
	hosttest.Require(t)
	for machine, users := range map[string][]string{
		"net-plain":                  nil,
		"net-users":                  {"--private-users=1048576:65536", "--private-users-ownership=map"},
		"net-with-quite-a-long-name": nil,
	} {
		t.Run(machine, func(t *testing.T) {
			dir := t.TempDir() + "/guest"
			out, err := exec.Command("cp", "-a", hosttest.Busybox, dir).CombinedOutput()
			must.NoError(t, err, must.Sprint(string(out)))
			must.NoError(t, os.WriteFile(dir+"/page", []byte("from "+machine), 0o644))
			leader := nspawn(t, machine, append(users, "--directory="+dir, "--console=pipe", "--as-pid2", "--port=tcp:18080:80",
				"nc", "-ll", "-p", "80", "-e", "cat", "/page")...)

			begin := time.Now()
			result, err := Configure(deadline(t, 10*time.Second), leader)
			must.NoError(t, err)
			t.Log("configured in", time.Since(begin), result)
			must.Eq(t, "host0", result.Interface)
			must.Eq(t, 28, result.Address.Bits())
			must.Eq(t, result.Gateway.Next(), result.Address.Addr())
			ping(t, result.Address.Addr().String())
			t.Log("answers after", time.Since(begin))
			must.Eq(t, "from "+machine, get(t, result.Address.Addr().String()+":80"))
			must.Eq(t, "from "+machine, get(t, ownAddress(t)+":18080"))
			t.Log("port is forwarded after", time.Since(begin))

			out, err = exec.Command("nsenter", "-t", strconv.Itoa(leader), "-n", busybox(), "ping", "-c1", "-W3", ownAddress(t)).CombinedOutput()
			must.NoError(t, err, must.Sprint(string(out)))
			addresses, err := Addresses(t.Context(), leader)
			must.NoError(t, err)
			must.Eq(t, []netip.Prefix{result.Address}, addresses)
		})
	}
}

// TestHostSubnets expects each of several machines to have a subnet of its own.
func TestHostSubnets(t *testing.T) {
	hosttest.Require(t)
	taken := map[netip.Prefix]bool{}
	for i := range 4 {
		dir := t.TempDir() + "/guest"
		out, err := exec.Command("cp", "-a", hosttest.Busybox, dir).CombinedOutput()
		must.NoError(t, err, must.Sprint(string(out)))
		leader := nspawn(t, fmt.Sprint("net-", i), "--directory="+dir, "--console=pipe", "--as-pid2", "sleep", "1000")
		result, err := Configure(deadline(t, 10*time.Second), leader)
		must.NoError(t, err)
		must.MapNotContainsKey(t, taken, result.Address.Masked())
		taken[result.Address.Masked()] = true
		ping(t, result.Address.Addr().String())
	}
}

// TestHostWithoutNetworkd expects to be told what is missing.
func TestHostWithoutNetworkd(t *testing.T) {
	hosttest.Require(t)
	out, err := exec.Command("systemctl", "stop", "systemd-networkd.socket", "systemd-networkd.service").CombinedOutput()
	must.NoError(t, err, must.Sprint(string(out)))
	t.Cleanup(func() { _ = exec.Command("systemctl", "start", "systemd-networkd.service").Run() })
	dir := t.TempDir() + "/guest"
	out, err = exec.Command("cp", "-a", hosttest.Busybox, dir).CombinedOutput()
	must.NoError(t, err, must.Sprint(string(out)))
	leader := nspawn(t, "net-alone", "--directory="+dir, "--console=pipe", "--as-pid2", "sleep", "1000")
	_, err = Configure(deadline(t, time.Second), leader)
	must.ErrorContains(t, err, "systemd-networkd must run on the host and manage ve-net-alone")
}

// TestHostBooted waits for a machine that configures itself.
func TestHostBooted(t *testing.T) {
	hosttest.Require(t)
	leader := nspawn(t, "net-boot", "--directory="+hosttest.Debian, "--volatile=overlay", "--boot", "--console=read-only")
	begin := time.Now()
	address, err := WaitAddress(deadline(t, 30*time.Second), leader)
	must.NoError(t, err)
	t.Log("has", address, "after", time.Since(begin))
	ping(t, address.Addr().String())
	addresses, err := Addresses(t.Context(), leader)
	must.NoError(t, err)
	must.True(t, slices.Contains(addresses, address), must.Sprint(addresses))
}
