package nspawn

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"nomad-driver-nspawn/nspawn/enter/container"
)

const (
	uidRange = 65536

	// shimPath is where our own executable is seen in a machine that needs it.
	shimPath = "/run/nomad-driver-nspawn"
)

// argv is the command line that runs the machine. Everything in it is visible
// to each user of the host, in /proc and over D-Bus: no secret may stand here.
func argv(s Spec, t tool, d Dirs) []string {
	args := []string{
		t.path,
		"--quiet",
		"--keep-unit",   // the unit is the machine's scope
		"--settings=no", // no .nspawn file may change what the job asked for
		"--machine=" + s.Machine,
		"--directory=" + d.rootOf(s),
		"--timezone=off", // else nspawn writes to the image's /etc/localtime
	}
	args = append(args, modeArgs(s)...)
	args = append(args, userNamespaceArgs(s.Root)...)
	args = append(args, optional("--uuid=", s.UUID)...)
	args = append(args, optional("--hostname=", s.Hostname)...)
	args = append(args, optional("--chdir=", s.WorkingDirectory)...)
	args = append(args, optional("--capability=", strings.Join(s.Capabilities, ","))...)
	args = append(args, optional("--link-journal=", s.LinkJournal)...)
	args = append(args, optional("--resolv-conf=", s.ResolvConf)...)
	if s.Notifies() {
		args = append(args, "--notify-ready=yes")
	}
	args = append(args, rootArgs(s.Root)...)
	if t.version >= 261 {
		// Without it nspawn announces a future default on stderr (262).
		args = append(args, "--restrict-address-families=")
	}
	args = append(args, networkArgs(s.Network)...)
	args = append(args, bindArgs(s, t, d)...)
	args = append(args, environmentArgs(s.Environment)...)
	args = append(args, "--")
	return append(args, payload(s)...)
}

// rootOf is the directory that nspawn gets as the machine's root.
func (d Dirs) rootOf(s Spec) string {
	if s.Root.InPlace {
		return s.Root.Image
	}
	return d.root(s.Machine)
}

func modeArgs(s Spec) []string {
	switch s.Mode {
	case Boot:
		// A booted system wants a console; "pipe" has none, and nothing is
		// captured (seen with 252 to 262).
		return []string{"--boot", "--console=read-only", "--register=yes"}
	case ProcessTwo:
		return []string{"--as-pid2", "--console=pipe", "--register=no"}
	default:
		return []string{"--console=pipe", "--register=no"}
	}
}

func rootArgs(r Root) (args []string) {
	if r.ReadOnly {
		args = append(args, "--read-only")
	}
	if r.Volatile != "overlay" || r.InPlace {
		args = append(args, optional("--volatile=", r.Volatile)...)
	}
	for _, mount := range r.Tmpfs {
		args = append(args, "--tmpfs="+mount)
	}
	for _, path := range r.Inaccessible {
		args = append(args, "--inaccessible="+escapePath(path))
	}
	return args
}

// userNamespaceArgs: the overlay shows the machine's owners already, and an
// overlay cannot be ID-mapped (EINVAL, systemd#25886), hence "off". A directory
// that runs in place is mapped by nspawn.
func userNamespaceArgs(r Root) []string {
	if !r.UserNamespace {
		return []string{"--private-users=no"}
	}
	ownership := "off"
	if r.InPlace {
		ownership = "map"
	}
	return []string{
		fmt.Sprintf("--private-users=%d:%d", r.UIDBase, uidRange),
		"--private-users-ownership=" + ownership,
	}
}

// networkArgs: a given network namespace is joined by the unit, not by nspawn,
// which fails to do so in a user namespace before 262 (systemd#36363).
func networkArgs(n Network) []string {
	if !n.Veth {
		return nil
	}
	args := []string{"--network-veth"}
	ports := slices.SortedFunc(slices.Values(n.Ports), func(a, b Port) int { return cmp.Compare(a.Host, b.Host) })
	for _, p := range ports {
		for _, protocol := range []string{"tcp", "udp"} {
			args = append(args, fmt.Sprintf("--port=%s:%d:%d", protocol, p.Host, p.Container))
		}
	}
	return args
}

func bindArgs(s Spec, t tool, d Dirs) []string {
	binds := s.binds(d)
	if s.shimmed() {
		binds = append(binds, Bind{Source: t.shim, Destination: shimPath, ReadOnly: true})
	}
	slices.SortFunc(binds, func(a, b Bind) int { return cmp.Compare(a.Destination, b.Destination) })
	var args []string
	for _, b := range binds {
		option, flags := "--bind=", ""
		if b.ReadOnly {
			option = "--bind-ro="
		}
		if s.Root.UserNamespace && !b.unmapped {
			flags = ":idmap"
		}
		args = append(args, option+escapePath(b.Source)+":"+escapePath(b.Destination)+flags)
	}
	return args
}

// escapePath protects the separators of --bind=, see systemd-nspawn(1).
func escapePath(path string) string {
	return strings.NewReplacer(`\`, `\\`, `:`, `\:`).Replace(path)
}

func optional(option, value string) []string {
	if value == "" {
		return nil
	}
	return []string{option + value}
}

// payload is what stands behind "--".
func payload(s Spec) []string {
	if s.shimmed() {
		return slices.Concat([]string{shimPath, container.UserArg, s.User, "--"}, s.Command)
	}
	return s.Command
}

// Notifies says that the guest tells when it is ready, so that Ready is its word.
func (s Spec) Notifies() bool { return s.NotifyReady || s.Mode == Boot }

// shimmed says that the command is started through our shim. nspawn's --uid=
// runs getent(1) in the image, which busybox and distroless images lack.
func (s Spec) shimmed() bool {
	return s.User != "" && s.Mode != Boot
}
