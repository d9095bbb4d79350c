package machine

import (
	"regexp"
	"slices"
	"strings"

	"nomad-driver-nspawn/nspawn/gate/inside"
	"nomad-driver-nspawn/nspawn/systemd"
)

var environmentName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)

// ValidEnvironmentName says whether systemd takes a variable of this name
// (env_name_is_valid in systemd's env-util.c). A command gets all variables; a guest's
// systemd drops those of other names.
func ValidEnvironmentName(name string) bool { return environmentName.MatchString(name) }

// PossibleEnvironmentName says whether execve(2) can pass a variable of this name.
func PossibleEnvironmentName(name string) bool {
	return name != "" && !strings.ContainsAny(name, "=\x00")
}

// environmentProperties are for systemd-nspawn itself.
func environmentProperties(s Spec, h Host) []systemd.Property {
	return []systemd.Property{
		systemd.NewProperty("Environment", slices.Concat([]string{
			"NOTIFY_SOCKET=" + h.Notify,
			// nspawn's own messages belong into the journal of the unit, not
			// between the lines of the payload.
			"SYSTEMD_LOG_TARGET=journal",
			inside.OneCPU, // for the launcher
		}, s.Root.variables(), s.Isolation.variables())),
	}
}
