package network

import (
	"fmt"
	"os/exec"
	"syscall"
	"testing"

	"github.com/shoenig/test/must"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"nomad-driver-nspawn/e2e/host/hosttest"
)

// TestMain runs the tests in a network namespace of their own, which is their
// host. A disposable host is the tests' already.
func TestMain(m *testing.M) {
	hosttest.RunPrivateOutside(m, unix.CLONE_NEWNET)
}

// fakeMachine is a process in a network namespace of its own, as systemd-nspawn
// leaves it: a veth pair, down inside.
type fakeMachine struct {
	*exec.Cmd
	hostLink netlink.Link
}

// startMachine starts a machine whose link is called hostEnd on the host; none
// if that is "".
func startMachine(t *testing.T, hostEnd string) fakeMachine {
	t.Helper()
	hosttest.RequireRoot(t)
	// No Pdeathsig: it acts when the thread ends that started the process, and
	// Prepare ends threads.
	leader := exec.Command("sleep", "100")
	leader.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET}
	must.NoError(t, leader.Start())
	m := fakeMachine{Cmd: leader}
	t.Cleanup(m.end)
	if hostEnd == "" {
		return m
	}
	must.NoError(t, netlink.LinkAdd(&netlink.Veth{
		LinkAttrs: netlink.LinkAttrs{Name: hostEnd, Index: 1000 + leader.Process.Pid}, // the two ends differ in it
		PeerName:  guestLink, PeerNamespace: netlink.NsPid(leader.Process.Pid),
	}))
	link, err := netlink.LinkByName(hostEnd)
	must.NoError(t, err)
	must.NoError(t, netlink.LinkSetUp(link))
	m.hostLink = link
	t.Cleanup(func() { _ = netlink.LinkDel(link) }) // It may have gone with the machine.
	return m
}

func (m fakeMachine) end() {
	_ = m.Process.Kill()
	_ = m.Wait()
}

// ip runs ip(8) in the machine and returns what it prints.
func (m fakeMachine) ip(t *testing.T, args ...string) string {
	t.Helper()
	args = append([]string{"-t", fmt.Sprint(m.Process.Pid), "-n", "ip", "-o"}, args...)
	out, err := exec.Command("nsenter", args...).CombinedOutput()
	must.NoError(t, err, must.Sprint(string(out)))
	return string(out)
}

// networkd does what systemd-networkd does: give the host's end addresses once
// it has a carrier. The result ends it.
func (m fakeMachine) networkd(t *testing.T, addresses ...string) (stop func()) {
	t.Helper()
	updates, done := make(chan netlink.LinkUpdate), make(chan struct{})
	must.NoError(t, netlink.LinkSubscribeWithOptions(updates, done, netlink.LinkSubscribeOptions{ListExisting: true}))
	finished := make(chan struct{})
	go func() {
		defer close(finished)
		given := false
		for update := range updates {
			carrier := update.Attrs().Index == m.hostLink.Attrs().Index && update.IfInfomsg.Flags&unix.IFF_RUNNING != 0
			if !carrier || given {
				continue
			}
			given = true
			for _, a := range addresses {
				address, err := netlink.ParseAddr(a)
				if err == nil {
					err = netlink.AddrAdd(m.hostLink, address)
				}
				if err != nil {
					t.Errorf("give %s: %v", a, err)
				}
			}
		}
	}()
	return func() { close(done); <-finished }
}
