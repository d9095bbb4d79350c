package machine

import (
	"maps"
	"slices"
	"strings"
	"time"

	"nomad-driver-nspawn/nspawn/gate/inside"
	"nomad-driver-nspawn/nspawn/systemd"
)

// Mode says what the first processes of a machine are.
type Mode string

// The modes of a machine.
const (
	// Boot runs the image's init as PID 1; Command holds its arguments.
	Boot Mode = "boot"
	// ProcessTwo runs Command as PID 2 below nspawn's stub init (--as-pid2),
	// which reaps orphans.
	ProcessTwo Mode = "process-two"
	// ProcessOne runs Command itself as PID 1.
	ProcessOne Mode = "process-one"
)

// RebootStatus is the exit status of systemd-nspawn when the guest asked for
// a reboot (systemd-nspawn(1), EXIT STATUS; the template unit has it too).
const RebootStatus = 133

type exitStatusSet struct{ Statuses, Signals []int32 }

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

// args: a guest boots without --boot, which would start the image's init at once. The
// shim looks for the init, and the signal is what --boot would set.
func (m Mode) args() []string {
	switch m {
	case Boot:
		// A booted system wants a console; "pipe" has none, and nothing is
		// captured (seen with 252 to 262).
		return []string{"--kill-signal=SIGRTMIN+3", "--console=read-only", "--register=yes"}
	case ProcessTwo:
		return []string{"--as-pid2", "--console=pipe", "--register=no"}
	default:
		return []string{"--console=pipe", "--register=no"}
	}
}

// MaxReboots is how often a guest may reboot within rebootInterval.
const (
	MaxReboots     = 20
	rebootInterval = 10 * time.Minute
)

func (m Mode) properties() []systemd.Property {
	if m != Boot {
		// The default with Delegate=, "continue", hides an OOM kill.
		return []systemd.Property{systemd.NewProperty("OOMPolicy", "stop")}
	}
	return []systemd.Property{
		// The guest's systemd handles its own services.
		systemd.NewProperty("OOMPolicy", "continue"),
		// A reboot of the guest is not the end of the task. Not in
		// SuccessExitStatus=: with RemainAfterExit= it would not restart.
		systemd.NewProperty("RestartForceExitStatus", exitStatusSet{Statuses: []int32{RebootStatus}, Signals: []int32{}}),
		// A guest that reboots all the time has failed. Whether and when it is started
		// again is then for others to say.
		systemd.NewProperty("StartLimitIntervalUSec", uint64(rebootInterval.Microseconds())),
		systemd.NewProperty("StartLimitBurst", uint32(MaxReboots+1)),
	}
}

// Notifies says that the guest tells when it is ready, so that Ready is its word.
func (s Spec) Notifies() bool { return s.NotifyReady || s.Mode == Boot }

func readyArgs(s Spec) []string {
	if !s.Notifies() {
		return nil
	}
	return []string{"--notify-ready=yes"}
}

// Instructions are what the machine runs once it may begin. They go through the gate
// and are in no argument, property or file: the environment is full of secrets.
func (s Spec) Instructions() inside.Instructions {
	todo := inside.Instructions{Init: s.Mode == Boot, Argv: s.Command, Dir: s.WorkingDirectory, User: s.User}
	for _, name := range slices.Sorted(maps.Keys(s.Environment)) {
		todo.Env = append(todo.Env, name+"="+s.Environment[name])
	}
	return todo
}

// gateBinds show the machine its gate, and the shim that goes through it.
func gateBinds(h Host) []Bind {
	return []Bind{
		{Source: h.Gate, Destination: inside.GateDir, ReadOnly: true},
		{Source: h.Shim, Destination: inside.ShimPath, ReadOnly: true},
	}
}

// execProperties: systemd replaces $NAME in the arguments of ExecStart=. ExecStartEx=
// can forbid it, but systemd 252 writes it to the unit's file as a setting that
// it does not know: after a daemon-reload the unit cannot be started again, as
// it has to be when the guest reboots. So it is only used where it is needed;
// the same goes for ";", which 252 writes wrongly.
func execProperties(args []string) []systemd.Property {
	if slices.ContainsFunc(args, func(arg string) bool { return strings.ContainsAny(arg, "$;") }) {
		return []systemd.Property{
			systemd.NewProperty("ExecStartEx", []execStartEx{{Path: args[0], Args: args, Flags: []string{"no-env-expand"}}}),
		}
	}
	return []systemd.Property{systemd.NewProperty("ExecStart", []execStart{{Path: args[0], Args: args}})}
}
