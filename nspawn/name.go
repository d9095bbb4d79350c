package nspawn

import (
	"crypto/sha256"
	"encoding/hex"
	"path/filepath"
	"regexp"
	"strings"
)

const (
	// Slice holds every unit of this driver. It is a child of machine.slice,
	// where nspawn machines live by convention, and never below nomad.slice:
	// the Nomad client manages that cgroup by itself, not through systemd.
	Slice = "machine-nomad.slice"

	// unitPrefix starts the name of every unit of this driver.
	unitPrefix = "nomad-nspawn-"

	// maxName is the longest machine name that systemd takes
	// (HOST_NAME_MAX, hostname_is_valid in systemd's hostname-util.c).
	maxName = 64
)

var machineName = regexp.MustCompile(`^[a-zA-Z0-9]([a-zA-Z0-9-]*[a-zA-Z0-9])?$`)

// MachineName is the name of the machine of a task: TASK-ALLOCATION, so that
// `nomad alloc status` and `machinectl list` show the same words. A task name
// that is not a valid host name label, or is too long, is shortened to what is
// valid of it and told apart by a hash.
//
// It is a pure function of the allocation and the task, not of the single
// start: whatever an earlier start of the task left is found by it.
func MachineName(allocID, task string) string {
	name := task + "-" + allocID
	if machineName.MatchString(name) && len(name) <= maxName {
		return name
	}
	sum := sha256.Sum256([]byte(name))
	suffix := "-" + hex.EncodeToString(sum[:4]) + "-" + validPart(allocID)
	label := validPart(task)
	label = strings.Trim(label[:min(len(label), max(maxName-len(suffix), 0))], "-")
	name = strings.TrimPrefix(label+suffix, "-")
	return strings.Trim(name[:min(len(name), maxName)], "-")
}

// validPart keeps what may stand in a host name label.
func validPart(s string) string {
	keep := func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9':
			return r
		}
		return '-'
	}
	return strings.Trim(strings.Map(keep, s), "-")
}

// UnitName is the transient service unit of a machine.
func UnitName(machine string) string { return unitPrefix + machine + ".service" }

// MachineOf is the reverse of UnitName; ok is false for other units.
func MachineOf(unit string) (machine string, ok bool) {
	machine, ok = strings.CutPrefix(unit, unitPrefix)
	if !ok {
		return "", false
	}
	return strings.CutSuffix(machine, ".service")
}

// Dirs are the places on the host where a machine keeps its files. All paths
// below them follow from the machine's name.
type Dirs struct {
	// Run is a directory on a tmpfs: what is in it is void after a reboot.
	Run string
	// State is a directory on a real file system: an overlay's writable layer
	// can neither be on an overlay nor should it be in memory.
	State string
}

// DefaultDirs is where the driver keeps its files.
var DefaultDirs = Dirs{Run: "/run/nomad-driver-nspawn", State: "/var/lib/nomad-driver-nspawn"}

// lock is the file in which machines are locked, see Manager.lock.
func (d Dirs) lock() string { return filepath.Join(d.Run, "lock") }

func (d Dirs) machines() string { return filepath.Join(d.Run, "machines") }

// machine is the machine's own directory below Run, mode 0700.
func (d Dirs) machine(name string) string { return filepath.Join(d.machines(), name) }

// root is the machine's root: the mount point of its overlay, or a symbolic
// link to the directory that it runs in place.
func (d Dirs) root(name string) string { return filepath.Join(d.machine(name), "root") }

// environment is the file with the task's environment, mode 0600.
func (d Dirs) environment(name string) string { return filepath.Join(d.machine(name), "environment") }

// notify is the socket on which systemd-nspawn reports.
func (d Dirs) notify(name string) string { return filepath.Join(d.machine(name), "notify") }

func (d Dirs) writables() string { return filepath.Join(d.State, "machines") }

// writable is the directory of the machine's writable layer, mode 0700, unless
// that is in memory.
func (d Dirs) writable(name string) string { return filepath.Join(d.writables(), name) }

// ranges records which machine has which UID range.
func (d Dirs) ranges() string { return filepath.Join(d.Run, "uid") }

// disks is where disk images are mounted.
func (d Dirs) disks() string { return filepath.Join(d.Run, "disks") }

// Images is the store of images.
func (d Dirs) Images() string { return filepath.Join(d.State, "images") }
