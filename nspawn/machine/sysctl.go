package machine

import (
	"fmt"
	"regexp"
	"strings"
)

// The kinds of namespace that have parameters of the kernel, as /proc/PID/ns names them.
const (
	NetworkNamespace = "net"
	IPCNamespace     = "ipc"
)

// ipcSysctl matches the parameters of an IPC namespace (ipc_namespaces(7)), except for those
// with which a checkpoint is restored.
var ipcSysctl = regexp.MustCompile(`^(kernel\.(msgmax|msgmnb|msgmni|sem|shmall|shmmax|shmmni|shm_rmid_forced)|fs\.mqueue\.[a-z_]+)$`)

// SysctlNamespace returns the kind of namespace that a parameter of the kernel belongs to,
// or "" if the whole host has one value.
func SysctlNamespace(name string) string {
	switch {
	case strings.HasPrefix(name, "net."):
		return NetworkNamespace
	case ipcSysctl.MatchString(name):
		return IPCNamespace
	}
	return ""
}

// sysctlName matches names that cannot lead out of /proc/sys. Names with a slash, which
// sysctl(8) also takes, are not among them.
var sysctlName = regexp.MustCompile(`^[a-zA-Z0-9_-]+(\.[a-zA-Z0-9_-]+)+$`)

// maxSysctl limits the names and values of sysctls. No parameter that is meant needs more.
const maxSysctl = 256

// CheckSysctl returns an error unless a parameter of the kernel belongs to a namespace of the
// machine, and its value is one line.
func CheckSysctl(name, value string) error {
	switch {
	case len(name) > maxSysctl || !sysctlName.MatchString(name):
		return fmt.Errorf("sysctl: %.64q is not the name of a parameter of the kernel, as net.core.somaxconn", name)
	case SysctlNamespace(name) == "":
		return fmt.Errorf("sysctl.%s: is not one that a container has of its own: net.*, fs.mqueue.*, and those of System V IPC, as kernel.shmmax", name)
	case strings.TrimSpace(value) == "" || len(value) > maxSysctl || !isLine(strings.ReplaceAll(value, "\t", " ")):
		return fmt.Errorf("sysctl.%s: %.64q is not a value: want one line of at most %d bytes", name, value, maxSysctl)
	}
	return nil
}
