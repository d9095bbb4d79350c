package nspawn

import (
	"golang.org/x/sys/unix"

	"nomad-driver-nspawn/nspawn/idmap"
	"nomad-driver-nspawn/nspawn/machine"
)

// The words of package machine under the names that they had here. Who changes a file
// that uses one takes it from there.
type (
	Spec     = machine.Spec
	Mode     = machine.Mode
	Root     = machine.Root
	Writable = machine.Writable
	File     = machine.File
	Bind     = machine.Bind
	Overlay  = machine.Overlay
	Layer    = machine.Layer
	Network  = machine.Network
	Limits   = machine.Limits
)

const (
	Boot       = machine.Boot
	ProcessTwo = machine.ProcessTwo
	ProcessOne = machine.ProcessOne
	Slice      = machine.Slice
	Halt       = machine.Halt

	KeepEntries   = machine.KeepEntries
	KeepAll       = machine.KeepAll
	KeepFromLinks = machine.KeepFromLinks
)

func MachineName(allocID, task string) string      { return machine.Name(allocID, task) }
func UnitName(name string) string                  { return machine.UnitName(name) }
func MachineOf(unit string) (name string, ok bool) { return machine.OfUnit(unit) }
func ValidEnvironmentName(name string) bool        { return machine.ValidEnvironmentName(name) }
func ParseCPUs(list string) ([]int, error)         { return machine.ParseCPUs(list) }
func ParseSignal(name string) (unix.Signal, error) { return machine.ParseSignal(name) }

// Describe shows what starting the machine asks of this systemd.
func Describe(s Spec, systemdVersion int) string {
	var base uint32
	if s.Root.UserNamespace {
		base = 1000 * idmap.RangeSize // for example
	}
	t := tool{path: "systemd-nspawn", version: systemdVersion, program: "nomad-driver-nspawn"}
	return machine.Describe(s, DefaultDirs.host(s, base, t))
}
