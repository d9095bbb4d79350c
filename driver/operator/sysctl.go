package operator

import (
	"fmt"
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"nomad-driver-nspawn/driver/schema"
	"nomad-driver-nspawn/nspawn/machine"
)

// numbers is the value of a parameter: how many numbers it has, and the largest of them.
type numbers struct {
	count int
	most  uint64
}

// safeSysctls are the parameters of the kernel that every job may set for its own container.
// The value of each is kept in a namespace, does nothing outside of it, and cannot make the
// kernel use more of the host's memory than the job can use without it. Kubernetes has most
// of them in its list of safe sysctls, for the same reasons.
//
// A network namespace may be shared by the tasks of a group. What is here changes how its
// sockets behave, and not which packets the kernel takes, answers, forwards or sends for
// others.
var safeSysctls = map[string]numbers{
	// System V IPC and POSIX message queues. All of it is memory of the container's control
	// group, and message queues are limited by RLIMIT_MSGQUEUE, too.
	"fs.mqueue.msg_default":     {1, math.MaxInt32},
	"fs.mqueue.msg_max":         {1, math.MaxInt32},
	"fs.mqueue.msgsize_default": {1, math.MaxInt32},
	"fs.mqueue.msgsize_max":     {1, math.MaxInt32},
	"fs.mqueue.queues_max":      {1, math.MaxInt32},
	"kernel.msgmax":             {1, math.MaxInt32},
	"kernel.msgmnb":             {1, math.MaxInt32},
	"kernel.msgmni":             {1, math.MaxInt32},
	"kernel.sem":                {4, math.MaxInt32},
	"kernel.shm_rmid_forced":    {1, 1},
	"kernel.shmall":             {1, math.MaxUint64},
	"kernel.shmmax":             {1, math.MaxUint64},
	"kernel.shmmni":             {1, math.MaxInt32},

	// Connections that wait: the kernel keeps them for each listening socket. No control
	// group pays for them, hence the bounds.
	"net.core.somaxconn":             {1, math.MaxUint16},
	"net.ipv4.tcp_abort_on_overflow": {1, 1},
	"net.ipv4.tcp_max_syn_backlog":   {1, math.MaxUint16},
	"net.ipv4.tcp_syncookies":        {1, 2},

	// Ports and groups: who may use what in the namespace, where nothing is the host's.
	"net.ipv4.ip_local_port_range":        {2, math.MaxUint16},
	"net.ipv4.ip_unprivileged_port_start": {1, math.MaxUint16},
	"net.ipv4.ping_group_range":           {2, math.MaxInt32},
	"net.ipv6.bindv6only":                 {1, 1},

	// Answers to pings of the namespace's own addresses.
	"net.ipv4.icmp_echo_ignore_all": {1, 1},
	"net.ipv6.icmp.echo_ignore_all": {1, 1},

	// Buffers of sockets, memory of the control group. All TCP of the host shares one limit
	// (tcp_mem), of which one socket should not have much.
	"net.ipv4.tcp_moderate_rcvbuf": {1, 1},
	"net.ipv4.tcp_notsent_lowat":   {1, math.MaxUint32},
	"net.ipv4.tcp_rmem":            {3, 64 << 20},
	"net.ipv4.tcp_wmem":            {3, 64 << 20},

	// How TCP waits, tries again and measures in connections of the namespace. Orphaned
	// connections have one limit on the host, so they must not last longer than by default.
	"net.ipv4.tcp_fin_timeout":           {1, 60},
	"net.ipv4.tcp_keepalive_intvl":       {1, 32767},
	"net.ipv4.tcp_keepalive_probes":      {1, 127},
	"net.ipv4.tcp_keepalive_time":        {1, 32767},
	"net.ipv4.tcp_mtu_probing":           {1, 2},
	"net.ipv4.tcp_retries1":              {1, 15},
	"net.ipv4.tcp_retries2":              {1, 15},
	"net.ipv4.tcp_sack":                  {1, 1},
	"net.ipv4.tcp_slow_start_after_idle": {1, 1},
	"net.ipv4.tcp_syn_retries":           {1, 127},
	"net.ipv4.tcp_synack_retries":        {1, 15},
	"net.ipv4.tcp_timestamps":            {1, 2},
	"net.ipv4.tcp_tw_reuse":              {1, 2},
	"net.ipv4.tcp_window_scaling":        {1, 1},
}

// unsafeSysctls are parameters that no rule of the operator allows, with the reason.
var unsafeSysctls = map[string]string{
	"net.ipv4.tcp_congestion_control": "the kernel loads the module that it names",
}

// number matches numbers as the kernel shows them again.
var number = regexp.MustCompile(`^(0|[1-9][0-9]*)$`)

// SysctlNetwork says whose network a task has, of which it sets parameters.
type SysctlNetwork int

const (
	OwnNetwork SysctlNetwork = iota
	GroupNetwork
	HostNetwork
)

// Sysctl answers for a parameter of the kernel in a task's own namespaces.
func (p Policy) Sysctl(name, value string, network SysctlNetwork) error {
	inNetwork := machine.SysctlNamespace(name) == machine.NetworkNamespace
	want, isSafe := safeSysctls[name]
	reason, isUnsafe := unsafeSysctls[name]
	switch {
	case inNetwork && network == HostNetwork:
		return fmt.Errorf("sysctl.%s: the task has the client's own network, which no job may change: give it another one", name)
	case isUnsafe:
		return fmt.Errorf("sysctl.%s: no job may set it: %s", name, reason)
	case isSafe:
		return schema.Prefixed("sysctl."+name+": ", want.check(value))
	case inNetwork && network == GroupNetwork:
		return fmt.Errorf("sysctl.%s: is not on the driver's list of parameters without risk, and other tasks of the group have the same network: leave its mode at host, so that the task has one of its own", name)
	case inNetwork && matchesAny(p.rules.AllowSysctls, name):
		return nil
	case inNetwork:
		return fmt.Errorf("sysctl.%s: is not on the driver's list of parameters without risk, and not among what the operator allows with allow_sysctls in the plugin's config (%s)", name, listed(p.rules.AllowSysctls))
	}
	return fmt.Errorf("sysctl.%s: is not on the driver's list of parameters without risk", name)
}

// check refuses a value that has another form, or is too large to be without risk.
func (n numbers) check(value string) error {
	fields := strings.Fields(value)
	isLarge := func(field string) bool {
		got, err := strconv.ParseUint(field, 10, 64)
		return err != nil || got > n.most
	}
	isOther := func(field string) bool { return !number.MatchString(field) }
	if len(fields) == n.count && !slices.ContainsFunc(fields, isOther) && !slices.ContainsFunc(fields, isLarge) {
		return nil
	}
	if n.count == 1 {
		return fmt.Errorf("want a number of 0 to %d, not %q", n.most, value)
	}
	return fmt.Errorf("want %d numbers of 0 to %d, not %q", n.count, n.most, value)
}

// sysctlMistakes wants patterns that can match parameters of a network. The driver's list has
// those of IPC already.
func (p policyOptions) sysctlMistakes() (found schema.Mistakes) {
	for i, pattern := range p.AllowSysctls {
		at := schema.At("allow_sysctls", i)
		found.Add(checkPattern(at, pattern))
		found.Unless(strings.HasPrefix(pattern, "net."), "%s: %q does not begin with net.: all others that a container has of its own are allowed, and no job may set those of the client", at, pattern)
	}
	return found
}
