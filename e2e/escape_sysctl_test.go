//go:build e2e

package e2e

import (
	"fmt"

	"github.com/shoenig/test/must"
)

// testEscapeBySysctl sets parameters that are not the task's own, or that do more than they
// say. The operator of these jobs allows all that can be allowed.
func testEscapeBySysctl(l *lab) {
	const (
		own    = "network_veth = true\n"
		host   = "network_veth = false\n"
		bridge = "network {\nmode = \"bridge\"\n}"
	)
	read := func() string {
		return l.onHost("sh", "-c", "cd /proc/sys; cat kernel/core_pattern kernel/msgmax net/core/somaxconn net/ipv4/ip_forward net/ipv4/tcp_congestion_control")
	}
	before := read()
	for name, c := range map[string]struct{ network, group, sysctl, value, want string }{
		"of the host":      {own, "", "kernel.core_pattern", "|/bin/evil", "is not one that a container has of its own"},
		"in its place":     {own, "", "kernel.shm_next_id", "1", "is not one that a container has of its own"},
		"path":             {own, "", "net./../kernel/modprobe", "/bin/evil", "is not the name of a parameter"},
		"dots":             {own, "", "net....kernel.modprobe", "/bin/evil", "is not the name of a parameter"},
		"line feed":        {own, "", "net.core.somaxconn", "1\n2", "is not a value"},
		"too large":        {own, "", "net.core.somaxconn", "2147483647", "want a number of 0 to 65535"},
		"module":           {own, "", "net.ipv4.tcp_congestion_control", "dctcp", "the kernel loads the module that it names"},
		"memory of all":    {own, "", "net.ipv4.tcp_mem", "1 2 3", "the kernel has no such parameter for a container"},
		"host's network":   {host, "", "net.core.somaxconn", "777", "the client's own network"},
		"host's router":    {host, "", "net.ipv4.ip_forward", "1", "the client's own network"},
		"group's router":   {"", bridge, "net.ipv4.ip_forward", "1", "other tasks of the group have the same network"},
		"group's answers":  {"", bridge, "net.ipv4.conf.all.proxy_arp_pvlan", "1", "other tasks of the group have the same network"},
		"group's messages": {"", bridge, "kernel.modprobe", "/bin/evil", "is not one that a container has of its own"},
	} {
		l.sub(name, func(l *lab) {
			config := fmt.Sprintf("%ssysctl = { %q = %s }\n", c.network, c.sysctl, quote(c.value)) + attempt("busybox", "true")
			al := l.start(job{group: c.group, tasks: []task{{config: config}}})
			must.StrContains(l, l.refusal(al), c.want)
			l.gone(al)
		})
	}
	must.Eq(l, before, read())
}
