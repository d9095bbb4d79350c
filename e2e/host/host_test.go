package host

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"
)

func output(t *testing.T, h *Host, name string, args ...string) string {
	t.Helper()
	cmd := h.Command(t.Context(), name, args...)
	cmd.Stderr = t.Output()
	out, err := cmd.Output()
	must.NoError(t, err, must.Sprintf("%s %v", name, args))
	return strings.TrimSpace(string(out))
}

func TestDownLeavesNothing(t *testing.T) {
	h := upForTest(t, Options{})
	// Things that a test may leave running, mounted and attached.
	output(t, h, "systemd-run", "--unit", "straggler", "sleep", "infinity")
	output(t, h, "sh", "-c", "ip netns add straggler; mount -t tmpfs none /mnt; setsid sleep infinity >/dev/null 2>&1 &")
	output(t, h, "sh", "-c", "truncate -s 1M /var/lib/machines/x.raw; losetup -f /var/lib/machines/x.raw; chattr +i /var/lib/machines/x.raw")
	var disk unix.Stat_t
	must.NoError(t, unix.Stat(filepath.Join(h.Root(), "var/lib/machines/x.raw"), &disk))
	must.One(t, loopsOf(t, disk))
	before := takeInventory(t, h)
	must.Eq(t, everything, before.left())

	must.NoError(t, h.Down())
	must.Eq(t, nil, before.left())
	must.Zero(t, loopsOf(t, disk))
	must.NoError(t, h.Down(), must.Sprint("taking a host down twice is not an error"))
}

// loopsOf counts the loop devices of a file. Tests of other packages use loop devices at
// the same time.
func loopsOf(t *testing.T, file unix.Stat_t) (n int) {
	t.Helper()
	devices, err := filepath.Glob("/dev/loop[0-9]*")
	must.NoError(t, err)
	for _, device := range devices {
		_ = withLoop(device, func(fd int) error { // it may have been removed
			info, err := unix.IoctlLoopGetStatus64(fd)
			if err == nil && info.Device == file.Dev && info.Inode == file.Ino {
				n++
			}
			return nil
		})
	}
	return n
}

func TestCallerKilled(t *testing.T) {
	caller, _, h := startCaller(t, "keep")
	before := takeInventory(t, h)
	must.Eq(t, everything, before.left())

	must.NoError(t, caller.Process.Kill())
	waitSupervisor(t, h.record.Supervisor)
	must.Eq(t, nil, before.left())
	_ = caller.Wait()
}

func TestSupervisorKilled(t *testing.T) {
	h := upForTest(t, Options{})
	before := takeInventory(t, h)

	must.NoError(t, syscall.Kill(h.record.Supervisor, syscall.SIGKILL))
	waitSupervisor(t, h.record.Supervisor)
	must.SliceNotEmpty(t, before.left()) // otherwise there is nothing to sweep
	hosts, err := List()
	must.NoError(t, err)
	for _, other := range hosts {
		must.NotEq(t, h.Name(), other.Name())
	}
	_ = h.supervisor.Wait() // not to be counted as running
	must.Eq(t, nil, before.left())
}

func TestDetachedHostOutlivesItsCaller(t *testing.T) {
	caller, stdin, h := startCaller(t, "detach")
	before := takeInventory(t, h)
	must.NoError(t, stdin.Close())
	must.NoError(t, caller.Wait())

	must.EqOp(t, h.Name(), output(t, h, "hostname"))
	must.Eq(t, everything, before.left())
	must.NoError(t, h.Down())
	must.Eq(t, nil, before.left())
	must.NoError(t, h.Down())
	_, err := Open(h.Name())
	must.ErrorContains(t, err, "is not up")
}

func TestPoweroffInsideTakesTheHostDown(t *testing.T) {
	h := upForTest(t, Options{})
	before := takeInventory(t, h)
	_ = h.Command(t.Context(), "systemctl", "poweroff").Run() // dies with the host
	waitSupervisor(t, h.record.Supervisor)
	must.NoError(t, h.Down())
	must.Eq(t, nil, before.left())
}

func TestConcurrentHostsHaveWorkingUplinks(t *testing.T) {
	requireRoot(t)
	const hosts = 4
	var wg sync.WaitGroup
	errs := make([]error, hosts)
	words := make([]string, hosts)
	addrs := make([]string, hosts)
	for i := range hosts {
		wg.Go(func() {
			h, err := Up(t.Context(), Options{})
			if err != nil {
				errs[i] = err
				return
			}
			addrs[i] = h.Addr().String()
			words[i], err = callHome(t.Context(), h)
			errs[i] = errors.Join(err, h.Down())
		})
	}
	wg.Wait()
	must.NoError(t, errors.Join(errs...))
	seen := map[string]bool{}
	for i := range hosts {
		must.EqOp(t, "from "+addrs[i], words[i])
		seen[addrs[i]] = true
	}
	must.MapLen(t, hosts, seen)
}

// callHome makes the host connect to the machine over its uplink. It returns the text that
// the host sent, and the host's address.
func callHome(ctx context.Context, h *Host) (string, error) {
	listener, err := net.Listen("tcp", h.Gateway().String()+":0")
	if err != nil {
		return "", err
	}
	defer listener.Close()
	port := listener.Addr().(*net.TCPAddr).Port
	script := fmt.Sprintf("echo -n from >/dev/tcp/%s/%d", h.Gateway(), port)
	if err := h.Command(ctx, "bash", "-c", script).Run(); err != nil {
		return "", err
	}
	conn, err := listener.Accept()
	if err != nil {
		return "", err
	}
	defer conn.Close()
	word, err := io.ReadAll(conn)
	return string(word) + " " + conn.RemoteAddr().(*net.TCPAddr).IP.String(), err
}

func TestSuites(t *testing.T) {
	requireRoot(t)
	image, err := BusyboxImage(t.Context())
	must.NoError(t, err)
	for _, suite := range Chosen() {
		t.Run(suite, func(t *testing.T) {
			h := upForTest(t, Options{Suite: suite, Binds: []Bind{{Source: image, Target: "/srv/image", ReadOnly: true}}})
			must.StrContains(t, output(t, h, "cat", "/etc/os-release"), "\nVERSION_CODENAME="+suite+"\n")
			must.EqOp(t, "running", output(t, h, "systemctl", "is-system-running"))
			must.EqOp(t, suite, output(t, h, "cat", Marker))
			links := strings.Fields(output(t, h, "networkctl", "list", "--no-legend", "uplink"))
			must.Eq(t, []string{"2", "uplink", "ether", "routable", "unmanaged"}, links)
			must.StrContains(t, output(t, h, "journalctl", "--header"), "/var/log/journal/")
			must.EqOp(t, "No machines.", output(t, h, "machinectl"))
			must.EqOp(t, "1", output(t, h, "sysctl", "-n", "net.ipv4.ip_forward"))
			must.EqOp(t, "0::/exec", lastLine(output(t, h, "cat", "/proc/self/cgroup")))
			output(t, h, "resolvectl", "status")
			// /tmp holds an overlay's upper layer, and nspawn runs on it with users of its own.
			overlay := "cd /tmp && mkdir upper work root && mount -t overlay o -o lowerdir=/srv/image,upperdir=upper,workdir=work root"
			output(t, h, "sh", "-c", overlay)
			output(t, h, "cp", "-a", "/srv/image", "/var/lib/machines/guest")
			for _, args := range [][]string{{"-D", "/tmp/root"}, {"-D", "/var/lib/machines/guest", "--private-users=pick"}} {
				args = append([]string{"--quiet", "--machine=guest"}, append(args, "/bin/sh", "-c", "exit 0")...)
				output(t, h, "systemd-nspawn", args...)
			}
			must.ErrorContains(t, h.Command(t.Context(), "touch", "/srv/image/x").Run(), "exit status 1")
		})
	}
}

func lastLine(s string) string { return s[strings.LastIndexByte(s, '\n')+1:] }

func TestUpRefuses(t *testing.T) {
	requireRoot(t)
	for want, opts := range map[string]Options{
		"want one of bookworm":       {Suite: "buzz"},
		"lower case letters":         {Name: "Upper/../case"},
		"want absolute paths":        {Binds: []Bind{{Source: "x", Target: "/x"}}},
		"open bind source /nonesuch": {Name: "refused", Binds: []Bind{{Source: "/nonesuch", Target: "/x"}}},
		"create bind target":         {Name: "refused", Binds: []Bind{{Source: "/etc/passwd", Target: "/etc"}}},
	} {
		_, err := Up(t.Context(), opts)
		must.ErrorContains(t, err, want)
	}
	must.Eq(t, nil, neverUp(t, "refused").left())
}

func TestUpRefusesATakenName(t *testing.T) {
	h := upForTest(t, Options{})
	_, err := Up(t.Context(), Options{Name: h.Name()})
	must.ErrorContains(t, err, "is up already")
	must.EqOp(t, h.Name(), output(t, h, "hostname"))
}

// probe makes systemd in a host run command as a service while booting.
func probe(t *testing.T, command string) []Bind {
	t.Helper()
	dir := t.TempDir()
	service, wants := filepath.Join(dir, "service"), filepath.Join(dir, "wants")
	text := "[Service]\nType=oneshot\nTimeoutStartSec=infinity\nExecStart=" + command + "\n"
	must.NoError(t, os.WriteFile(service, []byte(text), 0o644))
	must.NoError(t, os.WriteFile(wants, []byte("[Unit]\nWants=probe.service\n"), 0o644))
	return []Bind{
		{Source: service, Target: "/etc/systemd/system/probe.service"},
		{Source: wants, Target: "/etc/systemd/system/multi-user.target.d/probe.conf"},
	}
}

func TestDegradedHostIsUp(t *testing.T) {
	h := upForTest(t, Options{Binds: probe(t, "/bin/false")})
	state, err := h.Command(t.Context(), "systemctl", "is-system-running").Output()
	must.Error(t, err)
	must.EqOp(t, "degraded\n", string(state))
}

func TestUpGivesUpWithItsContext(t *testing.T) {
	requireRoot(t)
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	_, err := Up(ctx, Options{Name: "hanging", Binds: probe(t, "/bin/sleep infinity")})
	must.ErrorIs(t, err, context.DeadlineExceeded)
	must.Eq(t, nil, neverUp(t, "hanging").left())
}

func TestRootShowsTheHost(t *testing.T) {
	h := upForTest(t, Options{})
	must.NoError(t, os.WriteFile(filepath.Join(h.Root(), "var/tmp/note"), []byte("hello"), 0o600))
	must.EqOp(t, "hello", output(t, h, "cat", "/var/tmp/note"))
	var inside, outside unix.Stat_t
	must.NoError(t, unix.Stat(filepath.Join(h.Root(), "var/lib/nomad"), &inside))
	must.NoError(t, unix.Stat(h.record.Dir, &outside))
	must.EqOp(t, outside.Dev, inside.Dev) // a real directory, not the overlay
}
