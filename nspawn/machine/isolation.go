package machine

import (
	"fmt"
	"slices"
	"strings"
)

// uidRange is the number of UIDs in a user namespace.
const uidRange = 65536

// userNamespaceArgs returns the arguments for the user namespace.
//
// The overlay already shows the files with the machine's owners, and an overlay cannot be
// ID-mapped (EINVAL, systemd#25886), hence "off". A directory that runs in place is
// ID-mapped by nspawn, hence "map".
func (r Root) userNamespaceArgs(h Host) []string {
	if !r.UserNamespace {
		return []string{"--private-users=no"}
	}
	ownership := "off"
	if r.InPlace {
		ownership = "map"
	}
	return []string{
		fmt.Sprintf("--private-users=%d:%d", h.UIDBase, uidRange),
		"--private-users-ownership=" + ownership,
	}
}

// Isolation restricts the machine beyond its namespaces.
type Isolation struct {
	// NoNewPrivileges prevents set-user-ID programs from granting privileges.
	NoNewPrivileges bool
	// DropCapabilities are removed from nspawn's default set. With AllCapabilities, only
	// the capabilities in Spec.Capabilities remain.
	DropCapabilities []string
	// SystemCallFilter lists names and groups of system calls to allow in addition to
	// nspawn's, or to forbid, with a leading "~" (systemd-nspawn(1),
	// --system-call-filter=).
	SystemCallFilter []string
	// Privileged gives the machine access to all devices of the host, and write access to
	// the kernel's settings in /proc and /sys.
	Privileged bool
}

// AllCapabilities stands for every capability, in Spec.Capabilities and in
// Isolation.DropCapabilities.
const AllCapabilities = "all"

// Capabilities lists all capabilities of the kernel in the order of their numbers
// (capabilities(7)).
var Capabilities = []string{
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_SETGID",
	"CAP_SETUID", "CAP_SETPCAP", "CAP_LINUX_IMMUTABLE", "CAP_NET_BIND_SERVICE", "CAP_NET_BROADCAST", "CAP_NET_ADMIN",
	"CAP_NET_RAW", "CAP_IPC_LOCK", "CAP_IPC_OWNER", "CAP_SYS_MODULE", "CAP_SYS_RAWIO", "CAP_SYS_CHROOT",
	"CAP_SYS_PTRACE", "CAP_SYS_PACCT", "CAP_SYS_ADMIN", "CAP_SYS_BOOT", "CAP_SYS_NICE", "CAP_SYS_RESOURCE",
	"CAP_SYS_TIME", "CAP_SYS_TTY_CONFIG", "CAP_MKNOD", "CAP_LEASE", "CAP_AUDIT_WRITE", "CAP_AUDIT_CONTROL",
	"CAP_SETFCAP", "CAP_MAC_OVERRIDE", "CAP_MAC_ADMIN", "CAP_SYSLOG", "CAP_WAKE_ALARM", "CAP_BLOCK_SUSPEND",
	"CAP_AUDIT_READ", "CAP_PERFMON", "CAP_BPF", "CAP_CHECKPOINT_RESTORE",
}

func capabilityArgs(s Spec) []string {
	args := optional("--capability=", strings.Join(s.Capabilities, ","))
	return append(args, optional("--drop-capability=", strings.Join(dropped(s), ","))...)
}

// dropped returns the capabilities to drop. nspawn's own "all" cannot be used: it also
// drops the capabilities that are to be kept, in whichever order the two options are
// given.
func dropped(s Spec) []string {
	if !slices.Contains(s.Isolation.DropCapabilities, AllCapabilities) {
		return s.Isolation.DropCapabilities
	}
	return slices.DeleteFunc(slices.Clone(Capabilities), func(name string) bool {
		return slices.Contains(s.Capabilities, name)
	})
}

func (i Isolation) args() (args []string) {
	if i.NoNewPrivileges {
		args = append(args, "--no-new-privileges=yes")
	}
	for _, name := range i.SystemCallFilter {
		args = append(args, "--system-call-filter="+name)
	}
	return args
}

// variables returns variables for nspawn's own environment (systemd's ENVIRONMENT.md).
func (i Isolation) variables() []string {
	if !i.Privileged {
		return nil
	}
	return []string{"SYSTEMD_NSPAWN_API_VFS_WRITABLE=yes"}
}

// addressFamilyArgs restricts no address family. Without the option, nspawn announces a
// future default on stderr (systemd 262).
func addressFamilyArgs(h Host) []string {
	if h.Version < 261 {
		return nil
	}
	return []string{"--restrict-address-families="}
}
