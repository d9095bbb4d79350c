package operator

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/hashicorp/nomad/drivers/shared/capabilities"
)

// HostUsers checks a machine without a user namespace.
func (p Policy) HostUsers() error {
	if isOn(p.rules.RequireUserNamespaces) {
		return errors.New("user_namespacing: false is not allowed: the operator has set require_user_namespaces = true in the plugin's config")
	}
	return refusal{what: "user_namespacing: false makes the machine's root the host's root", option: "allow_privileged"}.unless(p.rules.AllowPrivileged)
}

// NoNewPrivileges reports whether no task may gain privileges by set-user-ID programs.
func (p Policy) NoNewPrivileges() bool { return isOn(p.rules.NoNewPrivileges) }

// Privileged checks a machine that is not confined.
func (p Policy) Privileged() error {
	if isOn(p.rules.RequireUserNamespaces) {
		return errors.New("privileged: true is not allowed: the operator has set require_user_namespaces = true in the plugin's config")
	}
	return refusal{what: "privileged: true gives the task the host's root and all of its devices", option: "allow_privileged"}.unless(p.rules.AllowPrivileged)
}

// SystemCall checks a system call that systemd-nspawn forbids.
func (p Policy) SystemCall(name string) error {
	return refusal{
		what:   fmt.Sprintf("system_call_filter: %s allows what systemd-nspawn forbids", name),
		option: "allow_privileged",
		or:     "the job forbid more, as ~" + name,
	}.unless(p.rules.AllowPrivileged)
}

// Device checks a device that a job names.
func (p Policy) Device(name string) error {
	if matchesAny(p.rules.AllowDevices, name) {
		return nil
	}
	return fmt.Errorf("%s: is not among the devices that the operator allows with allow_devices in the plugin's config", name)
}

// Capabilities checks the capabilities that the job adds.
func (p Policy) Capabilities(names []string) error {
	if len(names) == 0 || slices.Contains(p.rules.AllowCaps, "all") {
		return nil
	}
	missing := capabilities.New(p.rules.AllowCaps).Difference(capabilities.New(names))
	if missing.Empty() {
		return nil
	}
	return fmt.Errorf("capability: the operator does not allow %s; allow_caps in the plugin's config allows %s",
		strings.Join(missing.Slice(true), ", "), listed(p.rules.AllowCaps))
}
