// Package machine describes a machine and translates the description for systemd: a Spec
// becomes the command line of systemd-nspawn and the properties of the unit that runs it.
// The package is pure: it neither reads nor changes the host.
//
// Each feature has one file with its part of the Spec, its arguments and its properties.
// Argv and Properties only combine them.
package machine

import (
	"slices"

	"nomad-driver-nspawn/nspawn/gate/inside"
	"nomad-driver-nspawn/nspawn/systemd"
)

// Spec holds everything needed to run a machine. It is plain data.
type Spec struct {
	Machine       string            // name, see Name
	Description   string            // description of the unit
	JournalFields map[string]string // added to each journal entry of the unit
	UUID          string            // machine ID of the container

	Root             Root
	Mode             Mode
	Command          []string // payload with arguments, or arguments of the image's init
	Environment      map[string]string
	WorkingDirectory string // "" is the image's root; created for the user if missing
	User             string // as in docker: name or UID, optionally ":" and group or GID
	Hostname         string // "" is the machine's name
	Capabilities     []string
	LinkJournal      string // "no", "guest"; "try-guest" and "auto" ignore a failure
	ResolvConf       string // a value of --resolv-conf=
	NotifyReady      bool   // the payload sends READY=1; a booted system always does
	LogToJournal     bool   // the output goes to the host's journal, not to streams

	Binds    []Bind
	Overlays []Overlay
	Memories []Memory
	// Untrusted is a directory that machines write to, such as the allocation's. Paths
	// below it are opened without following symbolic links.
	Untrusted   string
	Devices     []Device
	Credentials []Credential
	Network     Network
	Names       Names
	Limits      Limits
	Isolation   Isolation
	Sysctls     map[string]string // parameters of the kernel, in the machine's own namespaces
}

// Host holds the values that depend on this host and not on the job. They are determined,
// or created, before the start.
type Host struct {
	// Launcher is the command to which nspawn's command line is appended. It enters the
	// mount namespace in which all paths of this Host are valid.
	Launcher []string
	UIDBase  uint32 // first UID of the machine's range, see idmap.Ranges

	Nspawn  string // path of systemd-nspawn
	Version int    // systemd's major version
	Shim    string // program that nspawn starts, see package gate

	Root        string // root directory of the machine
	Gate        string // directory in which the shim finds the plugin
	Notify      string // socket on which nspawn reports
	Credentials string // directory with a file for each credential, mode 0600
	Binds       []Bind // prepared mounts that nspawn binds
}

// Argv returns the command line that runs the machine. Every user of the host can see all
// of it, in /proc and over D-Bus, so it must not contain a secret.
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

// Properties returns the properties of the machine's transient unit, except for the
// standard streams. The unit is the record of the machine: when the machine has ended,
// the unit stays loaded, with the exit status, until it is stopped.
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

// optional returns the option with its value, or no argument if the value is empty.
func optional(option, value string) []string {
	if value == "" {
		return nil
	}
	return []string{option + value}
}
