package machine

import (
	"time"

	"nomad-driver-nspawn/nspawn/systemd"
)

// Slice holds every unit of this driver. It is a child of machine.slice,
// where nspawn machines live by convention, and never below nomad.slice:
// the Nomad client manages that cgroup by itself, not through systemd.
const Slice = "machine-nomad.slice"

// stopTimeout is how long systemd waits for nspawn to end by itself when the
// unit is stopped. The payload has had its own time before.
const stopTimeout = 10 * time.Second

// nspawnArgs are those of each machine.
func nspawnArgs(s Spec) []string {
	return []string{
		"--quiet",
		"--keep-unit",   // the unit is the machine's scope
		"--settings=no", // no .nspawn file may change what the job asked for
		"--machine=" + s.Machine,
	}
}

// unitProperties are those of each unit.
func unitProperties(s Spec) []systemd.Property {
	return []systemd.Property{
		systemd.NewProperty("Description", s.Description),
		systemd.NewProperty("Slice", Slice),

		// With Type=notify, nspawn's STOPPING=1 makes systemd forget a unit
		// that exits with 0; Type=exec and a socket of our own keep the exit
		// status and still tell readiness.
		systemd.NewProperty("Type", "exec"),
		systemd.NewProperty("NotifyAccess", "none"),
		systemd.NewProperty("StandardInput", "null"),
		systemd.NewProperty("RemainAfterExit", true),

		systemd.NewProperty("Delegate", true),
		systemd.NewProperty("KillMode", "mixed"),
		systemd.NewProperty("TimeoutStopUSec", uint64(stopTimeout.Microseconds())),
	}
}
