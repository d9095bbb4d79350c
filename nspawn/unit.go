package nspawn

import (
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/godbus/dbus/v5"

	"nomad-driver-nspawn/nspawn/systemd"
)

// rebootStatus is the exit status of systemd-nspawn when the guest asked for
// a reboot (systemd-nspawn(1), EXIT STATUS; the template unit has it too).
const rebootStatus = 133

// stopTimeout is how long systemd waits for nspawn to end by itself when the
// unit is stopped. The payload has had its own time before, see Manager.Stop.
const stopTimeout = 10 * time.Second

// execStart is an element of ExecStart=, execStartEx one of ExecStartEx=, which
// has flags (org.freedesktop.systemd1(5)).
type (
	execStart struct {
		Path          string
		Args          []string
		IgnoreFailure bool
	}
	execStartEx struct {
		Path  string
		Args  []string
		Flags []string
	}
)

type deviceRule struct{ Device, Access string }

type environmentFileEntry struct {
	Path     string
	Optional bool
}

type exitStatusSet struct{ Statuses, Signals []int32 }

// properties are those of the machine's transient unit, without the standard
// streams. The unit is the record of the machine: it stays loaded when the
// machine has ended, with its exit status, until it is stopped.
func properties(s Spec, t tool, d Dirs) []systemd.Property {
	props := []systemd.Property{
		property("Description", s.Description),
		property("Slice", Slice),
		property("LogExtraFields", journalFields(s.JournalFields)),

		command(argv(s, t, d)),
		property("EnvironmentFiles", []environmentFileEntry{{Path: d.environment(s.Machine)}}),
		property("Environment", []string{
			"NOTIFY_SOCKET=" + d.notify(s.Machine),
			// nspawn's own messages belong into the journal of the unit, not
			// between the lines of the payload.
			"SYSTEMD_LOG_TARGET=journal",
		}),

		// With Type=notify, nspawn's STOPPING=1 makes systemd forget a unit
		// that exits with 0; Type=exec and a socket of our own keep the exit
		// status and still tell readiness.
		property("Type", "exec"),
		property("NotifyAccess", "none"),
		property("StandardInput", "null"),
		property("RemainAfterExit", true),

		property("Delegate", true),
		property("KillMode", "mixed"),
		property("TimeoutStopUSec", uint64(stopTimeout.Microseconds())),
		property("TasksMax", uint64(16384)), // as systemd-nspawn@.service

		// As systemd-nspawn@.service, without the block devices that only
		// disk images need.
		property("DevicePolicy", "closed"),
		property("DeviceAllow", []deviceRule{
			{"/dev/fuse", "rwm"},
			{"/dev/net/tun", "rwm"},
			{"char-pts", "rw"},
		}),
	}
	if t.version >= 256 {
		// It mounts /run/systemd/nspawn/unix-export/MACHINE on the host. In a
		// mount namespace of its own nothing of that is left when it is killed
		// (systemd#34776); to make one takes 4 ms.
		props = append(props, property("PrivateMounts", true))
	}
	props = append(props, modeProperties(s.Mode)...)
	props = append(props, limitProperties(s.Limits)...)
	if s.LogToJournal {
		props = append(props,
			property("StandardOutput", "journal"),
			property("StandardError", "journal"),
			property("SyslogIdentifier", s.Machine),
		)
	}
	if s.Network.Namespace != "" {
		props = append(props, property("NetworkNamespacePath", s.Network.Namespace))
	}
	return props
}

// command: systemd replaces $NAME in the arguments of ExecStart=. ExecStartEx=
// can forbid it, but systemd 252 writes it to the unit's file as a setting that
// it does not know: after a daemon-reload the unit cannot be started again, as
// it has to be when the guest reboots. So it is only used where it is needed;
// the same goes for ";", which 252 writes wrongly.
func command(args []string) systemd.Property {
	if slices.ContainsFunc(args, func(arg string) bool { return strings.ContainsAny(arg, "$;") }) {
		return property("ExecStartEx", []execStartEx{{Path: args[0], Args: args, Flags: []string{"no-env-expand"}}})
	}
	return property("ExecStart", []execStart{{Path: args[0], Args: args}})
}

func modeProperties(m Mode) []systemd.Property {
	if m != Boot {
		// The default with Delegate=, "continue", hides an OOM kill.
		return []systemd.Property{property("OOMPolicy", "stop")}
	}
	return []systemd.Property{
		// The guest's systemd handles its own services.
		property("OOMPolicy", "continue"),
		// A reboot of the guest is not the end of the task. Not in
		// SuccessExitStatus=: with RemainAfterExit= it would not restart.
		property("RestartForceExitStatus", exitStatusSet{Statuses: []int32{rebootStatus}, Signals: []int32{}}),
		property("StartLimitIntervalUSec", uint64(0)),
	}
}

func limitProperties(l Limits) []systemd.Property {
	var props []systemd.Property
	if l.MemoryMax > 0 {
		// As docker does: no swap beside it, else the limit is not one.
		props = append(props, property("MemoryMax", l.MemoryMax), property("MemorySwapMax", uint64(0)))
	}
	if l.MemoryLow > 0 {
		props = append(props, property("MemoryLow", l.MemoryLow))
	}
	if l.CPUWeight > 0 {
		props = append(props, property("CPUWeight", l.CPUWeight))
	}
	if len(l.AllowedCPUs) > 0 {
		props = append(props, property("AllowedCPUs", cpuMask(l.AllowedCPUs)))
	}
	return props
}

func journalFields(fields map[string]string) [][]byte {
	var list [][]byte
	for _, name := range slices.Sorted(maps.Keys(fields)) {
		list = append(list, []byte(name+"="+fields[name]))
	}
	return list
}

func property(name string, value any) systemd.Property {
	return systemd.Property{Name: name, Value: dbus.MakeVariant(value)}
}
