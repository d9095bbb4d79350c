package links

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"nomad-driver-nspawn/e2e/host/hosttest"
	"nomad-driver-nspawn/e2e/host/networktest"
)

// gated is a container of systemd-nspawn whose payload waits for a line of input.
type gated struct {
	*exec.Cmd
	leader int
	word   io.WriteCloser
	out    *bufio.Reader
}

// startGated returns when systemd-nspawn has reported that the container is up.
func startGated(t *testing.T, name, script string) gated {
	t.Helper()
	path := filepath.Join(t.TempDir(), "notify")
	socket, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	must.NoError(t, err)
	defer socket.Close()
	g := gated{Cmd: exec.Command("systemd-nspawn", "--quiet", "--register=no", "--settings=no", "--machine="+name,
		"--directory="+hosttest.Busybox, "--read-only", "--private-network", "--link-journal=no", "--resolv-conf=off",
		"--timezone=off", "--console=pipe", "--as-pid2", "sh", "-c", "read word; "+script)}
	g.Env = append(os.Environ(), "NOTIFY_SOCKET="+path)
	g.Stderr = t.Output()
	g.word, err = g.StdinPipe()
	must.NoError(t, err)
	out, err := g.StdoutPipe()
	must.NoError(t, err)
	g.out = bufio.NewReader(out)
	must.NoError(t, g.Start())
	t.Cleanup(func() { _ = g.Process.Kill(); _ = g.Wait() })
	must.NoError(t, socket.SetReadDeadline(time.Now().Add(20*time.Second)))
	for ready := false; !ready || g.leader == 0; {
		buffer := make([]byte, 4096)
		n, err := socket.Read(buffer)
		must.NoError(t, err)
		for line := range strings.Lines(string(buffer[:n])) {
			line = strings.TrimSpace(line)
			ready = ready || line == "READY=1"
			if pid, ok := strings.CutPrefix(line, "X_NSPAWN_LEADER_PID="); ok {
				g.leader, err = strconv.Atoi(pid)
				must.NoError(t, err)
			}
		}
	}
	return g
}

// TestHostStart runs 100 payloads that first make a connection.
func TestHostStart(t *testing.T) {
	hosttest.Require(t)
	host, h := networktest.Host(t), newHost(t, "10.213.0.0/16")
	host.Serve(t, ":9000", "host")
	const starts = 100
	var connected, answered []time.Duration
	for n := range starts {
		name := fmt.Sprint("first-", n)
		g := startGated(t, name, "exec nc -w 3 $word 9000")
		namespace, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", g.leader))
		must.NoError(t, err)
		begin := time.Now()
		c, err := h.Connect(t.Context(), namespace, Spec{Machine: name, Kind: Veth})
		must.NoError(t, err)
		must.NoError(t, c.Warning)
		must.NoError(t, Settings(namespace))
		must.NoError(t, namespace.Close())
		connected = append(connected, time.Since(begin))
		_, err = fmt.Fprintln(g.word, c.Gateways[n%2])
		must.NoError(t, err)
		must.NoError(t, g.word.Close())
		said, _ := g.out.ReadString('\n')
		answered = append(answered, time.Since(begin))
		must.Eq(t, "host from "+c.addresses()[n%2].Addr().String(), said, must.Sprint("start ", n))
		_ = g.Wait()
		_, err = Disconnect(name)
		must.NoError(t, err)
	}
	for what, list := range map[string][]time.Duration{"connected": connected, "answered": answered} {
		slices.Sort(list)
		t.Log(what, "median", list[starts/2], "last", list[starts-1])
	}
	must.SliceEmpty(t, owners(t, host))
}

// TestHostZone connects two containers to a zone that systemd-networkd configures.
func TestHostZone(t *testing.T) {
	hosttest.Require(t)
	host, h := networktest.Host(t), newHost(t, "10.213.0.0/16")
	web, api := networktest.Bare(t), networktest.Bare(t)
	begin := time.Now()
	first, err := connect(t, host, web, h, Spec{Machine: "zone-web", Kind: Zone, Of: "lab"})
	must.NoError(t, err)
	t.Log("first of the zone in", time.Since(begin), first)
	must.Eq(t, "vz-lab", first.Bridge)
	begin = time.Now()
	second, err := connect(t, host, api, h, Spec{Machine: "zone-api", Kind: Zone, Of: "lab"})
	must.NoError(t, err)
	t.Log("second in", time.Since(begin), second)
	api.Serve(t, ":80", "api")
	// With br_netfilter, systemd-networkd masquerades even bridged packets.
	must.StrHasPrefix(t, "api from 192.168.", web.Hear("tcp", second.IPv4.Addr().String()+":80"))
	must.Eq(t, "api from "+second.Gateways[0].String(), host.Hear("tcp", second.IPv4.Addr().String()+":80"))
	begin = time.Now()
	until, err := Renew(t.Context(), open(t, api), "zone-api", second)
	must.NoError(t, err)
	must.Greater(t, 0, time.Until(until))
	t.Log("renewed in", time.Since(begin), "until", until)

	again, err := connect(t, host, networktest.Bare(t), h, Spec{Machine: "zone-web", Kind: Zone, Of: "lab"})
	must.NoError(t, err)
	must.Eq(t, first.IPv4, again.IPv4) // the address depends on the machine's name
	disconnectAll(t, host, "zone-web")
	host.Run(t, "ip", "link", "show", "vz-lab")
	disconnectAll(t, host, "zone-api")
	must.StrNotContains(t, host.Run(t, "ip", "link"), "vz-lab")
}

// TestHostZoneAgain makes the same zone many times while the host is busy. Each time,
// systemd-networkd must offer addresses of the network that the bridge then has.
func TestHostZoneAgain(t *testing.T) {
	hosttest.Require(t)
	host, h := networktest.Host(t), newHost(t, "10.213.0.0/16")
	load := exec.Command("sh", "-c", "for i in 1 2 3 4 5 6; do while :; do :; done & done; wait")
	load.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	must.NoError(t, load.Start())
	t.Cleanup(func() { _ = syscall.Kill(-load.Process.Pid, syscall.SIGKILL); _ = load.Wait() })
	var took []time.Duration
	for n := range 50 {
		begin := time.Now()
		name := fmt.Sprint("again-", n)
		c, err := connect(t, host, networktest.Bare(t), h, Spec{Machine: name, Kind: Zone, Of: "again"})
		must.NoError(t, err, must.Sprint("zone ", n))
		took = append(took, time.Since(begin))
		must.StrContains(t, host.Run(t, "ip", "-4", "addr", "show", "vz-again"), "inet "+c.Gateways[0].String()+"/")
		disconnectAll(t, host, name)
	}
	slices.Sort(took)
	t.Log("median", took[len(took)/2], "last", took[len(took)-1])
}
