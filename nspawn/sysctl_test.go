package nspawn

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"

	"nomad-driver-nspawn/nspawn/enter"
	"nomad-driver-nspawn/nspawn/machine"
	"nomad-driver-nspawn/nspawn/network/links"
)

// readSysctls returns the host's values of parameters.
func readSysctls(t *testing.T, values map[string]string) map[string]string {
	found := map[string]string{}
	for name := range values {
		text, err := readSysctl("/proc/sys/" + strings.ReplaceAll(name, ".", "/"))
		must.NoError(t, err)
		found[name] = text
	}
	return found
}

// mustBeUntouched wants the test, which stands for the plugin, to be the host's root that it
// was, with all of its threads, and a process that can be dumped.
func mustBeUntouched(t *testing.T) {
	tasks, err := filepath.Glob("/proc/self/task/*/status")
	must.NoError(t, err)
	must.SliceNotEmpty(t, tasks)
	for _, task := range tasks {
		if status, err := os.ReadFile(task); err == nil { // the thread may have ended
			must.StrContains(t, string(status), "\nUid:\t0\t0\t0\t0\n")
		}
	}
	dumpable, err := unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0)
	must.NoError(t, err)
	must.Eq(t, 1, dumpable)
}

// TestHostSysctls checks that the payload's first instruction finds the parameters, in its
// own namespaces only. The command is no shell, so that nothing runs before it reads them.
func TestHostSysctls(t *testing.T) {
	m := newManager(t)
	sysctls := map[string]string{
		"fs.mqueue.msg_max": "21", "kernel.msgmax": "9001", "kernel.sem": "251 32001 101 129", "kernel.shm_rmid_forced": "1",
		"net.ipv4.ping_group_range": "5 7", "net.ipv4.tcp_keepalive_time": "777", "net.ipv4.tcp_rmem": "4096 131071 7000000",
	}
	const want = "21\n9001\n251\t32001\t101\t129\n1\n5\t7\n777\n4096\t131071\t7000000\n"
	before := readSysctls(t, sysctls)
	for _, mode := range []machine.Mode{machine.ProcessOne, machine.ProcessTwo} {
		for _, userNamespace := range []bool{true, false} {
			spec := newMachine(t, m, "")
			spec.Mode, spec.Root.UserNamespace, spec.Sysctls = mode, userNamespace, sysctls
			spec.Network.Kind = links.Veth
			spec.Command = []string{
				"/bin/cat", "/proc/sys/fs/mqueue/msg_max", "/proc/sys/kernel/msgmax", "/proc/sys/kernel/sem", "/proc/sys/kernel/shm_rmid_forced",
				"/proc/sys/net/ipv4/ping_group_range", "/proc/sys/net/ipv4/tcp_keepalive_time", "/proc/sys/net/ipv4/tcp_rmem",
			}
			out := mustStart(t, m, spec, vethStep(m, spec, new(netip.Addr)))
			must.Eq(t, Exit{}, mustWait(t, m, spec.Machine))
			must.NoError(t, m.Remove(t.Context(), spec.Machine))
			must.Eq(t, want, <-out.stdout, must.Sprintf("mode %v, user namespace %t", mode, userNamespace))
		}
	}
	must.Eq(t, before, readSysctls(t, sysctls))
	mustBeUntouched(t)
}

// TestHostSysctlsOfGuest checks that a guest that reboots finds the parameters again: its
// namespaces are new.
func TestHostSysctlsOfGuest(t *testing.T) {
	m := newManager(t)
	for _, userNamespace := range []bool{true, false} {
		spec := newBooted(t, m)
		spec.Root.UserNamespace, spec.Network.Kind = userNamespace, links.Veth
		spec.Sysctls = map[string]string{"kernel.msgmax": "9001", "net.ipv4.tcp_keepalive_time": "777"}
		out := mustStart(t, m, spec)
		awaitEvent(t, out, Ready)
		mustHave(t, m, spec.Machine, "9001\n777\n")
		_, err := m.Exec(t.Context(), spec.Machine, enter.Command{Argv: []string{"systemctl", "reboot"}})
		must.NoError(t, err)
		awaitEvent(t, out, Rebooted)
		awaitEvent(t, out, Ready)
		mustHave(t, m, spec.Machine, "9001\n777\n")
	}
}

func mustHave(t *testing.T, m *Manager, name, want string) {
	var out strings.Builder
	_, err := m.Exec(t.Context(), name, enter.Command{Argv: []string{"cat", "/proc/sys/kernel/msgmax", "/proc/sys/net/ipv4/tcp_keepalive_time"}, Stdout: &out})
	must.NoError(t, err)
	must.Eq(t, want, out.String())
}

// TestHostSysctlFails checks that nothing runs if a parameter cannot have its value, and that
// the error has name, value and reason.
func TestHostSysctlFails(t *testing.T) {
	m := newManager(t)
	for name, c := range map[string]struct {
		kind              links.Kind
		name, value, want string
	}{
		"value":          {links.Veth, "net.ipv4.tcp_fin_timeout", "x", "does not accept the value"},
		"range":          {links.Veth, "net.ipv4.tcp_syncookies", "1000", "does not accept the value"},
		"IPC":            {links.Veth, "fs.mqueue.msg_max", "1000000000", "does not accept the value"},
		"less":           {links.Veth, "net.ipv4.tcp_rmem", "4096 100000", `has made "4096\t100000\t`},
		"none":           {links.Veth, "net.ipv4.none", "1", "has no such parameter for a container"},
		"of the host":    {links.Veth, "net.ipv4.tcp_mem", "1 2 3", "has no such parameter for a container"},
		"host's network": {"", "net.core.somaxconn", "777", "the machine has no net namespace of its own"},
	} {
		t.Run(name, func(t *testing.T) {
			before, err := os.ReadFile("/proc/sys/net/core/somaxconn")
			must.NoError(t, err)
			spec := newMachine(t, m, "echo ran")
			spec.Network.Kind, spec.Sysctls = c.kind, map[string]string{c.name: c.value}
			out, err := start(t, m, spec)
			must.ErrorContains(t, err, c.want)
			must.StrContains(t, err.Error(), c.name)
			must.Eq(t, nil, traces(t, m, spec.Machine))
			must.Eq(t, "", <-out.stdout)
			after, err := os.ReadFile("/proc/sys/net/core/somaxconn")
			must.NoError(t, err)
			must.Eq(t, string(before), string(after))
		})
	}
	mustBeUntouched(t)
}

// TestHostSysctlsOfGroup checks that the machines of one network all have what one of them
// has set there, and that a machine that joins later changes nothing of it.
func TestHostSysctlsOfGroup(t *testing.T) {
	m := newManager(t)
	first, second := newMachine(t, m, "exec sleep 1000"), newMachine(t, m, "cd /proc/sys; cat net/core/somaxconn net/ipv4/ip_unprivileged_port_start kernel/msgmax")
	namespace := filepath.Join("/run", "sysctl-test-"+first.Machine)
	must.NoError(t, os.WriteFile(namespace, nil, 0o600))
	t.Cleanup(func() { must.NoError(t, os.Remove(namespace)) })
	must.NoError(t, exec.Command("unshare", "--net="+namespace, "true").Run())
	t.Cleanup(func() { must.NoError(t, unix.Unmount(namespace, unix.MNT_DETACH)) })
	first.Network.Namespace, second.Network.Namespace = namespace, namespace
	first.Sysctls = map[string]string{"net.core.somaxconn": "777", "net.ipv4.ip_unprivileged_port_start": "1024", "kernel.msgmax": "9001"}
	mustStart(t, m, first)
	out := mustStart(t, m, second)
	must.Eq(t, Exit{}, mustWait(t, m, second.Machine))
	must.NoError(t, m.Remove(t.Context(), second.Machine))
	must.Eq(t, fmt.Sprintf("777\n1024\n%s", readSysctls(t, map[string]string{"kernel.msgmax": ""})["kernel.msgmax"]), <-out.stdout)
}

func TestOnHost(t *testing.T) {
	for value, want := range map[string]string{
		"0 0": "70000 70000", "5\t7": "70005 70007", "0 65535": "70000 135535", "0 65536": "0 65536", "0 2147483647": "0 2147483647", "1 0": "1 0", "x 0": "x 0", "1": "1",
	} {
		must.Eq(t, want, onHost("net.ipv4.ping_group_range", value, 70000))
		must.Eq(t, value, onHost("net.ipv4.ping_group_range", value, 0))
		must.Eq(t, value, onHost("net.ipv4.ip_local_port_range", value, 70000))
	}
}
