package network

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"

	"github.com/shoenig/test/must"
)

func TestPrepare(t *testing.T) {
	m := startMachine(t, "")
	path := fmt.Sprintf("/proc/%d/ns/net", m.Process.Pid)
	read := func() string {
		out, err := exec.Command("nsenter", "--net="+path, "cat", "/proc/sys/net/ipv4/ip_unprivileged_port_start").Output()
		must.NoError(t, err)
		return strings.TrimSpace(string(out))
	}
	must.Eq(t, "1024", read())
	must.NoError(t, Prepare(path))
	must.Eq(t, "0", read())
	must.StrContains(t, m.ip(t, "link", "show", "lo"), "LOOPBACK,UP")
	own, err := os.ReadFile("/proc/sys/net/ipv4/ip_unprivileged_port_start")
	must.NoError(t, err)
	must.Eq(t, "1024\n", string(own))

	must.ErrorContains(t, Prepare("/missing"), "open network namespace /missing")
	must.ErrorContains(t, Prepare("/dev/null"), "join network namespace /dev/null")
}

// TestPrepareKeepsMainThread calls it often enough for the main thread to be
// among those that do the work. It must not stay in another namespace.
func TestPrepareKeepsMainThread(t *testing.T) {
	m := startMachine(t, "")
	before, err := os.Readlink("/proc/self/ns/net")
	must.NoError(t, err)
	var all sync.WaitGroup
	for range 64 {
		all.Go(func() {
			for range 20 {
				if err := Prepare(fmt.Sprintf("/proc/%d/ns/net", m.Process.Pid)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
	after, err := os.Readlink("/proc/self/ns/net")
	must.NoError(t, err)
	must.Eq(t, before, after)
}
