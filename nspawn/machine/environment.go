package machine

import (
	"regexp"
	"slices"
	"strings"

	"nomad-driver-nspawn/nspawn/gate/inside"
	"nomad-driver-nspawn/nspawn/systemd"
)

var environmentName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)

// ValidEnvironmentName reports whether systemd accepts a variable of this name
// (env_name_is_valid in systemd's env-util.c). A command receives all variables; a
// guest's systemd drops the variables with other names.
func ValidEnvironmentName(name string) bool { return environmentName.MatchString(name) }

// PossibleEnvironmentName reports whether execve(2) can pass a variable of this name.
func PossibleEnvironmentName(name string) bool {
	return name != "" && !strings.ContainsAny(name, "=\x00")
}

// environmentProperties returns the environment of systemd-nspawn itself.
func environmentProperties(s Spec, h Host) []systemd.Property {
	return []systemd.Property{
		systemd.NewProperty("Environment", slices.Concat([]string{
			"NOTIFY_SOCKET=" + h.Notify,
			// nspawn's own messages belong in the unit's journal, not between the
			// payload's lines.
			"SYSTEMD_LOG_TARGET=journal",
			inside.OneCPU, // for the launcher
		}, s.Root.variables(), s.Isolation.variables())),
	}
}
