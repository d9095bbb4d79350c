package machine

import (
	"maps"
	"slices"
	"strings"
	"time"

	"nomad-driver-nspawn/nspawn/gate/inside"
	"nomad-driver-nspawn/nspawn/systemd"
)

// Mode selects which processes run as PID 1 and PID 2 of a machine.
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

// RebootStatus is the exit status of systemd-nspawn after the guest asked for a reboot
// (systemd-nspawn(1), EXIT STATUS). systemd-nspawn@.service uses it as well.
const RebootStatus = 133

type exitStatusSet struct{ Statuses, Signals []int32 }

// execStart is an element of ExecStart=. execStartEx is an element of ExecStartEx=, which
// also has flags (org.freedesktop.systemd1(5)).
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

// args returns the arguments of nspawn that depend on the mode.
//
// A booted guest is started without --boot, because --boot would start the image's init
// at once, without the shim. Instead the shim looks for the init, and --kill-signal= is
// set as --boot would set it.
func (m Mode) args() []string {
	switch m {
	case Boot:
		// A booted system needs a console. "pipe" provides none, and then nothing of its
		// output is captured (seen with systemd 252 to 262).
		return []string{"--kill-signal=SIGRTMIN+3", "--console=read-only", "--register=yes"}
	case ProcessTwo:
		return []string{"--as-pid2", "--console=pipe", "--register=no"}
	default:
		return []string{"--console=pipe", "--register=no"}
	}
}

// MaxReboots is the number of times that a guest may reboot within rebootInterval.
const (
	MaxReboots     = 20
	rebootInterval = 10 * time.Minute
)

func (m Mode) properties() []systemd.Property {
	if m != Boot {
		// "continue", the default with Delegate=, hides an OOM kill.
		return []systemd.Property{systemd.NewProperty("OOMPolicy", "stop")}
	}
	return []systemd.Property{
		// The guest's systemd handles its own services.
		systemd.NewProperty("OOMPolicy", "continue"),
		// A reboot of the guest does not end the task. SuccessExitStatus= is not set:
		// together with RemainAfterExit= it would prevent the restart.
		systemd.NewProperty("RestartForceExitStatus", exitStatusSet{Statuses: []int32{RebootStatus}, Signals: []int32{}}),
		// A guest that keeps rebooting has failed. Nomad then decides whether and when to
		// start it again.
		systemd.NewProperty("StartLimitIntervalUSec", uint64(rebootInterval.Microseconds())),
		systemd.NewProperty("StartLimitBurst", uint32(MaxReboots+1)),
	}
}

// Notifies reports whether the guest itself reports when it is ready.
func (s Spec) Notifies() bool { return s.NotifyReady || s.Mode == Boot }

func readyArgs(s Spec) []string {
	if !s.Notifies() {
		return nil
	}
	return []string{"--notify-ready=yes"}
}

// Instructions returns what the machine runs once it may begin. Instructions are sent
// through the gate. They are never part of an argument, a property or a file, because the
// environment is full of secrets.
func (s Spec) Instructions() inside.Instructions {
	todo := inside.Instructions{Init: s.Mode == Boot, Argv: s.Command, Dir: s.WorkingDirectory, User: s.User}
	if _, isSet := s.Environment["TERM"]; s.Mode == Boot && !isSet {
		// The console is a terminal, but who reads it later, as a log, has none: without
		// this, inits color what they say and ask the terminal for its size.
		todo.Env = append(todo.Env, "TERM=dumb")
	}
	for _, name := range slices.Sorted(maps.Keys(s.Environment)) {
		todo.Env = append(todo.Env, name+"="+s.Environment[name])
	}
	return todo
}

// gateBinds returns the binds that make the gate, and the shim that uses it, visible in
// the machine.
func gateBinds(h Host) []Bind {
	return []Bind{
		{Source: h.Gate, Destination: inside.GateDir, ReadOnly: true},
		{Source: h.Shim, Destination: inside.ShimPath, ReadOnly: true},
	}
}

// execProperties returns the property that holds the command line.
//
// systemd replaces $NAME in the arguments of ExecStart=. ExecStartEx= can prevent that,
// but systemd 252 writes it to the unit file as a setting that it does not know itself.
// After a daemon-reload the unit can then not be started again, which a reboot of the
// guest needs. So ExecStartEx= is used only for command lines that need it. They include
// those with a ";", which systemd 252 writes wrongly.
func execProperties(args []string) []systemd.Property {
	if slices.ContainsFunc(args, func(arg string) bool { return strings.ContainsAny(arg, "$;") }) {
		return []systemd.Property{
			systemd.NewProperty("ExecStartEx", []execStartEx{{Path: args[0], Args: args, Flags: []string{"no-env-expand"}}}),
		}
	}
	return []systemd.Property{systemd.NewProperty("ExecStart", []execStart{{Path: args[0], Args: args}})}
}
