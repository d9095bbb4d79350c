package machine

import (
	"time"

	"nomad-driver-nspawn/nspawn/systemd"
)

// Slice is the slice of every unit of this driver. It is a child of machine.slice, where
// nspawn machines live by convention. It must not be below nomad.slice, because the Nomad
// client manages that cgroup by itself, not through systemd.
const Slice = "machine-nomad.slice"

// ShareSlice is the slice, below Slice, of the machines without cores of their own. Its
// cores are limited to those that Nomad has reserved for no task: see ShareProperties.
const ShareSlice = "machine-nomad-share.slice"

// stopTimeout is how long systemd waits for nspawn to exit after the unit is stopped. The
// payload's own grace period is over by then.
const stopTimeout = 10 * time.Second

// nspawnArgs returns the arguments that every machine needs.
func nspawnArgs(s Spec) []string {
	return []string{
		"--quiet",
		"--keep-unit",   // the unit is the machine's scope
		"--settings=no", // no .nspawn file may change what the job asks for
		"--machine=" + s.Machine,
	}
}

// unitProperties returns the properties that every unit needs.
func unitProperties(s Spec) []systemd.Property {
	return []systemd.Property{
		systemd.NewProperty("Description", s.Description),
		systemd.NewProperty("Slice", s.Limits.slice()),

		// With Type=notify, nspawn's STOPPING=1 makes systemd forget a unit that exits
		// with 0. Type=exec with a notify socket of our own keeps the exit status and
		// still reports readiness.
		systemd.NewProperty("Type", "exec"),
		systemd.NewProperty("NotifyAccess", "none"),
		systemd.NewProperty("StandardInput", "null"),
		systemd.NewProperty("RemainAfterExit", true),

		systemd.NewProperty("Delegate", true),
		systemd.NewProperty("KillMode", "mixed"),
		systemd.NewProperty("TimeoutStopUSec", uint64(stopTimeout.Microseconds())),
	}
}
