package host

import (
	"bufio"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"
)

func requireRoot(t *testing.T) {
	t.Helper()
	if os.Getuid() == 0 {
		return
	}
	if os.Getenv("CI") == "true" {
		t.Fatal("needs root, and CI must not skip")
	}
	t.Skip("SKIPPED: needs root")
}

// inventory is what a host has on the machine, by kind. Other processes may have hosts at
// the same time, so everything is found by traces of this host.
type inventory struct {
	record record
	netns  string
}

func takeInventory(t *testing.T, h *Host) inventory {
	t.Helper()
	netns, err := os.Readlink(filepath.Join("/proc", strconv.Itoa(h.record.Leader), "ns/net"))
	must.NoError(t, err)
	return inventory{record: *h.record, netns: netns}
}

// neverUp is the inventory of a host that did not come up. Its index and network namespace
// are unknown.
func neverUp(t *testing.T, name string) inventory {
	t.Helper()
	base, err := cacheDir("hosts")
	must.NoError(t, err)
	return inventory{record: record{Name: name, Dir: filepath.Join(base, name), Index: -1}, netns: "unknown"}
}

// left returns the kinds of things that are still there.
func (i inventory) left() []string {
	var left []string
	add := func(kind string, found bool) {
		if found {
			left = append(left, kind)
		}
	}
	procs, _ := filepath.Glob("/proc/[0-9]*")
	inCgroup, inNetns, withMounts := false, false, false
	for _, proc := range procs {
		if status, _ := os.ReadFile(proc + "/status"); strings.Contains(string(status), "State:\tZ") {
			continue // a zombie
		}
		cgroup, _ := os.ReadFile(proc + "/cgroup")
		inCgroup = inCgroup || strings.Contains(string(cgroup), filepath.Base(i.record.cgroup()))
		netns, _ := os.Readlink(proc + "/ns/net")
		inNetns = inNetns || netns == i.netns
		mounts, _ := os.ReadFile(proc + "/mountinfo")
		withMounts = withMounts || strings.Contains(string(mounts), i.record.Dir+"/")
	}
	supervisor, _ := os.ReadFile("/proc/" + strconv.Itoa(i.record.Supervisor) + "/cmdline")
	add("processes", inCgroup)
	add("supervisor", strings.HasPrefix(string(supervisor), superviseName))
	add("network namespace", inNetns)
	add("mounts", withMounts)
	add("cgroup", exists(i.record.cgroup()))
	add("interface", linkExists(i.record.link()))
	add("port", i.record.LAN != "" && linkExists(i.record.port()))
	add("LAN", i.record.LAN != "" && linkExists(i.record.bridge()))
	add("files", exists(i.record.Dir))
	add("record", exists(i.record.path("")))
	return left
}

var everything = []string{"processes", "supervisor", "network namespace", "mounts", "cgroup", "interface", "files", "record"}

func upForTest(t *testing.T, opts Options) *Host {
	t.Helper()
	requireRoot(t)
	h, err := Up(t.Context(), opts)
	must.NoError(t, err)
	t.Cleanup(func() { must.NoError(t, h.Down()) })
	return h
}

// waitSupervisor returns when the host's supervisor has ended.
func waitSupervisor(t *testing.T, pid int) {
	t.Helper()
	fd, err := unix.PidfdOpen(pid, 0)
	if err == unix.ESRCH {
		return
	}
	must.NoError(t, err)
	defer unix.Close(fd)
	for err = unix.EINTR; err == unix.EINTR; {
		_, err = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 20_000)
	}
	must.NoError(t, err)
}

const callerVar = "DISPOSABLE_HOST_TEST_CALLER"

// TestCallerProcess is not a test but a program that owns a host: it boots a host, prints
// its name and waits for the end of its standard input.
func TestCallerProcess(t *testing.T) {
	mode := os.Getenv(callerVar)
	if mode == "" {
		return
	}
	h, err := Up(t.Context(), Options{})
	must.NoError(t, err)
	if mode == "detach" {
		must.NoError(t, h.Detach())
	}
	_, _ = os.Stdout.WriteString("up " + h.Name() + "\n")
	_, _ = io.Copy(io.Discard, os.Stdin)
	os.Exit(0)
}

// startCaller starts a program that owns a host and returns both.
func startCaller(t *testing.T, mode string) (*exec.Cmd, io.Closer, *Host) {
	t.Helper()
	requireRoot(t)
	caller := exec.Command("/proc/self/exe", "-test.run", "^TestCallerProcess$")
	caller.Env = append(os.Environ(), callerVar+"="+mode)
	caller.Stderr = os.Stderr
	stdin, err := caller.StdinPipe()
	must.NoError(t, err)
	stdout, err := caller.StdoutPipe()
	must.NoError(t, err)
	must.NoError(t, caller.Start())
	lines := bufio.NewScanner(stdout)
	for lines.Scan() {
		if name, ok := strings.CutPrefix(lines.Text(), "up "); ok {
			h, err := Open(name)
			must.NoError(t, err)
			return caller, stdin, h
		}
	}
	t.Fatal("the caller ended early")
	return nil, nil, nil
}
