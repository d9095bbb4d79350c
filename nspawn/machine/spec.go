// Package machine says what a machine is, and what that means to systemd: a Spec
// becomes the command line of systemd-nspawn and the properties of the unit that
// runs it. All of it is pure: nothing here looks at the host or changes it.
//
// Each feature has one file, with its part of the Spec, its arguments and its
// properties. Argv and Properties only put them together.
package machine

import (
	"slices"

	"nomad-driver-nspawn/nspawn/gate/inside"
	"nomad-driver-nspawn/nspawn/systemd"
)

// Spec is all that is needed to run a machine. It is plain data.
type Spec struct {
	Machine       string            // name, see Name
	Description   string            // of the unit
	JournalFields map[string]string // added to each journal entry of the unit
	UUID          string            // machine ID of the container, a UUID

	Root             Root
	Mode             Mode
	Command          []string // payload with arguments, or arguments of the image's init
	Environment      map[string]string
	WorkingDirectory string // "" is the image's root; the user's, if it is missing
	User             string // as docker takes it: name or UID, optionally ":" group or GID
	Hostname         string // "" is the machine's name
	Capabilities     []string
	LinkJournal      string // "no", "guest", or, if it can be done, "try-guest" or "auto"
	ResolvConf       string // a value of --resolv-conf=
	NotifyReady      bool   // the payload sends READY=1; a booted system always does
	LogToJournal     bool   // the output goes to the host's journal, not to streams

	Binds    []Bind
	Overlays []Overlay
	Memories []Memory
	// Untrusted is a directory that machines write to, as that of the allocation. What
	// lies below is reached through no symbolic link.
	Untrusted   string
	Devices     []Device
	Credentials []Credential
	Network     Network
	Names       Names
	Limits      Limits
	Isolation   Isolation
	Sysctls     map[string]string // of the machine's own network and IPC namespaces, as net.core.somaxconn
}

// Host is what the machine is run with on this host. A job has no say in it: it is
// found out, or made, before the start.
type Host struct {
	// Launcher is the command that nspawn's command line is appended to: it enters
	// the mount namespace in which all paths of this Host are.
	Launcher []string
	UIDBase  uint32 // first UID of the machine's range, see idmap.Ranges

	Nspawn  string // path of systemd-nspawn
	Version int    // systemd's major version
	Shim    string // the program that nspawn starts, see package gate

	Root        string // the machine's root
	Gate        string // the directory in which the shim finds the plugin
	Notify      string // the socket on which nspawn reports
	Credentials string // the directory that has them by name, each of mode 0600
	Binds       []Bind // those that nspawn makes, of what is prepared
}

// Argv is the command line that runs the machine. Everything in it is visible
// to each user of the host, in /proc and over D-Bus: no secret may stand here.
func Argv(s Spec, h Host) []string {
	return slices.Concat(
		h.Launcher,
		[]string{h.Nspawn},
		nspawnArgs(s),
		s.Root.directoryArgs(h),
		s.Mode.args(),
		s.Root.userNamespaceArgs(h),
		identityArgs(s),
		capabilityArgs(s),
		s.Isolation.args(),
		s.Limits.args(),
		credentialArgs(s, h),
		journalArgs(),
		resolvConfArgs(s),
		readyArgs(s),
		s.Root.args(),
		addressFamilyArgs(h),
		s.Network.args(s.Mode),
		bindArgs(s, h),
		[]string{"--setenv=" + inside.OneCPU, "--", inside.ShimPath, inside.GateArg},
	)
}

// Properties are those of the machine's transient unit, without the standard
// streams. The unit is the record of the machine: it stays loaded when the
// machine has ended, with its exit status, until it is stopped.
func Properties(s Spec, h Host) []systemd.Property {
	return slices.Concat(
		unitProperties(s),
		execProperties(Argv(s, h)),
		s.Mode.properties(),
		environmentProperties(s, h),
		deviceProperties(s),
		s.Limits.properties(),
		journalProperties(s),
		s.Network.properties(),
	)
}

// optional is an argument for a value, none for an empty one.
func optional(option, value string) []string {
	if value == "" {
		return nil
	}
	return []string{option + value}
}
